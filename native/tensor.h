#pragma once
#include <cstdint>
#include <type_traits>

#include "native/math/host_device.h"

namespace fapo {

// In the order of lib/addon.ts.
enum class DType : int32_t { float32, bfloat16, float16, int32, uint8, int8 };

constexpr int32_t kCpu = -1;  // any other device is the number of a GPU

// Borrowed memory of one element type; null when an optional argument is absent. `const` elements are inputs, others
// are outputs.
template <typename T>
struct Array {
  T* data = nullptr;
  int64_t size = 0;
  int32_t device = kCpu;  // where the memory lies

  FAPO_HD T& operator[](int64_t i) const { return data[i]; }
  FAPO_HD explicit operator bool() const { return data != nullptr; }
};

// Borrowed rows of a floating-point dtype, known at run time.
template <typename Void>
struct BasicMatrix {
  Void* data = nullptr;
  int64_t size = 0;        // elements from the first to the last
  int64_t row_stride = 0;  // elements from row to row
  DType dtype = DType::float32;
  int32_t device = kCpu;  // where the memory lies

  // Row i, in a matrix of T.
  template <typename T>
  FAPO_HD auto row(int64_t i) const {
    return static_cast<std::conditional_t<std::is_const_v<Void>, const T, T>*>(data) + i * row_stride;
  }
};
using Matrix = BasicMatrix<const void>;
using MutableMatrix = BasicMatrix<void>;

// Whether `rows` rows of `columns` elements lie inside the memory.
template <typename Void>
bool holds(const BasicMatrix<Void>& m, int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 0 || m.row_stride < columns) return false;
  if (rows == 0) return true;
  int64_t end = 0;
  return !__builtin_mul_overflow(rows - 1, m.row_stride, &end) && !__builtin_add_overflow(end, columns, &end) &&
         end <= m.size;
}

// A value that another thread may be changing (SharedArrayBuffer): one load, so that what was checked is what is used.
template <typename T>
FAPO_HD T load_once(const T& value) {
  return *static_cast<const volatile T*>(&value);
}

}  // namespace fapo
