#pragma once
#include "native/tensor.h"

namespace fapo {

// Converts between float32, bfloat16 and float16: widening exactly, narrowing to nearest even with NaN kept.
struct Cast {
  int32_t device = kCpu;
  Matrix source;  // [rows, columns]
  int64_t rows = 0;
  int64_t columns = 0;
  MutableMatrix result;  // [rows, columns], out

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("device", device), v("source", source), v("rows", rows), v("columns", columns), v("result", result);
  }
};

void cast(const Cast& args);

namespace cpu {
void cast(const Cast& args);
}  // namespace cpu

}  // namespace fapo
