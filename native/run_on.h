#pragma once
// Calls an op on the device of its arguments. Arrays of the host that stand beside those of a GPU travel there first.
#include <vector>

#include "native/backend.h"
#include "native/error.h"

namespace fapo {
namespace detail {

constexpr int64_t kUploadAlignment = 256;

template <typename T>
constexpr bool is_array = false;
template <typename T>
constexpr bool is_array<Array<T>> = true;
template <typename T>
constexpr bool is_matrix = false;
template <typename Void>
constexpr bool is_matrix<BasicMatrix<Void>> = true;

// Lists the inputs that lie on the host, with a place for each in one piece of device memory.
class Gather {
 public:
  Gather(int32_t device, std::vector<CudaUpload>& arrays) : device_(device), arrays_(arrays) {}

  template <typename T>
  void operator()(const char* name, T& field) {
    if constexpr (is_array<T>) {
      if (!field) return;
      const bool on_host = field.device == kCpu;
      check((on_host && std::is_const_v<std::remove_pointer_t<decltype(field.data)>>) || field.device == device_, name);
      if (on_host) add(field.data, field.size * static_cast<int64_t>(sizeof(*field.data)));
    } else if constexpr (is_matrix<T>) {
      check(field.device == device_, name);
    } else if constexpr (requires { field.fields(*this); }) {
      field.fields(*this);
    }
  }

  int64_t bytes = 0;

 private:
  void add(const void* data, int64_t size) {
    arrays_.push_back({data, size, bytes});
    bytes += (size + kUploadAlignment) / kUploadAlignment * kUploadAlignment;  // an empty array has an address, too
  }

  int32_t device_;
  std::vector<CudaUpload>& arrays_;
};

// Puts the places in the order in which Gather listed them.
class Scatter {
 public:
  Scatter(int32_t device, char* data, const std::vector<CudaUpload>& arrays)
      : device_(device), data_(data), next_(arrays.begin()) {}

  template <typename T>
  void operator()(const char*, T& field) {
    if constexpr (is_array<T>) {
      if (!field || field.device != kCpu) return;
      field.data = reinterpret_cast<decltype(field.data)>(data_ + (next_++)->offset);
      field.device = device_;
    } else if constexpr (requires { field.fields(*this); }) {
      field.fields(*this);
    }
  }

 private:
  int32_t device_;
  char* data_;
  std::vector<CudaUpload>::const_iterator next_;
};

template <typename Args>
void run_on_gpu(int32_t device, void (*Backend::*op)(const Args&), Args args) {
  const CudaLibrary& library = cuda_library();
  check(library.ops.*op != nullptr, "this op has no CUDA kernel");
  thread_local std::vector<CudaUpload> arrays;
  arrays.clear();
  Gather gather(device, arrays);
  args.fields(gather);
  if (arrays.empty()) return (library.ops.*op)(args);

  const int64_t bytes = gather.bytes;
  struct Uploaded {
    const CudaLibrary& library;
    int32_t device;
    void* data;
    int64_t bytes;
    ~Uploaded() { library.release(device, data, bytes); }  // once the op is done with it
  } uploaded{library, device, library.upload(device, arrays.data(), static_cast<int32_t>(arrays.size()), bytes), bytes};
  Scatter scatter(device, static_cast<char*>(uploaded.data), arrays);
  args.fields(scatter);
  (library.ops.*op)(args);
}

}  // namespace detail

// Arguments are already checked, but for what lies on a GPU: its kernels check that. Throws ERR_NO_CUDA for a device
// that has no backend.
template <typename Args>
void run_on(int32_t device, void (*Backend::*op)(const Args&), const Args& args) {
  if (device == kCpu) return (kCpuBackend.*op)(args);
  detail::run_on_gpu(device, op, args);
}

}  // namespace fapo
