// Blocks take chunks of a row, which may be as long as the whole tensor; threads take neighbouring elements.
#include <type_traits>

#include "cuda/convert.cuh"
#include "cuda/device.h"
#include "cuda/library.h"
#include "native/dispatch.h"

namespace fapo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 4 * kThreads;

// Conversion instructions make one NaN of all; a cast keeps the sign and, where it fits, the payload, as on the CPU.
FAPO_DEVICE float widen_any(float x) { return x; }
FAPO_DEVICE float widen_any(bf16 x) { return widen(x); }
FAPO_DEVICE float widen_any(f16 x) {
  const uint32_t sign = x.bits & 0x8000u, magnitude = x.bits & 0x7fffu;
  return magnitude > 0x7c00u ? __uint_as_float(sign << 16 | 0x7f800000u | magnitude << 13) : widen(x);
}

template <typename To>
FAPO_DEVICE To narrow_any(float x) {
  if constexpr (!std::is_same_v<To, float>) {
    const uint32_t top = __float_as_uint(x) >> 16;
    const uint32_t nan = std::is_same_v<To, bf16> ? top | 0x40u : (top & 0x8000u) | 0x7e00u;
    if (x != x) return {static_cast<uint16_t>(nan)};
  }
  return narrow<To>(x);
}

template <typename From, typename To>
__global__ void __launch_bounds__(kThreads)
    cast_kernel(const From* source, int64_t source_stride, To* result, int64_t result_stride, int64_t columns,
                int64_t chunks_per_row, int64_t chunks) {
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t row = chunk / chunks_per_row;
    const int64_t begin = (chunk % chunks_per_row) * kChunk + threadIdx.x;
    const From* from = source + row * source_stride;
    To* to = result + row * result_stride;
#pragma unroll
    for (int n = 0; n < kChunk; n += kThreads) {
      if (begin + n < columns) to[begin + n] = narrow_any<To>(widen_any(from[begin + n]));
    }
  }
}

}  // namespace

void cast(const Cast& args) {
  Call call(args.device, "cast");
  int64_t rows = args.rows, columns = args.columns;
  if (args.source.row_stride == columns && args.result.row_stride == columns) columns *= rows, rows = columns ? 1 : 0;
  const int64_t chunks_per_row = (columns + kChunk - 1) / kChunk;
  const int64_t chunks = rows * chunks_per_row;
  dispatch_float(args.source.dtype, [&]<typename From>() {
    dispatch_float(args.result.dtype, [&]<typename To>() {
      call.launch(cast_kernel<From, To>, {.blocks = chunks, .threads = kThreads}, args.source.row<From>(0),
                  args.source.row_stride, args.result.row<To>(0), args.result.row_stride, columns, chunks_per_row,
                  chunks);
    });
  });
}

}  // namespace fapo::cuda
