#pragma once
// The loops over the vocabulary: the only code that runs once per logit. Written once over a small vector type
// (vector_*.h), compiled once per instruction set, chosen at run time. C headers only, so that no inline function of
// the C++ library is emitted with instructions that the machine may not have.
#include <stdint.h>

#include "native/math/exp_map.h"
#include "native/simd/policy_kernel.h"

namespace fapo {

struct bf16;
struct f16;

// y(x) as the loops compute it. Without a cap, where it may be, in one step: y' = x scale - offset, rounded once. As
// offset is rounded, too, y' = y + residual for all x, and whoever called makes that good in float64.
struct RowMap : ExpMap {
  float offset;
  bool fused;

  // `can_fuse`: the kernels have a fused multiply-add. Far from 0 the residual would not be small.
  RowMap(const LogitScale& logit_scale, float reference, bool can_fuse)
      : ExpMap(from(logit_scale, reference)), offset(reference * scale) {
    constexpr float kFar = 4096.0f;
    fused = can_fuse && !logit_scale.capped() && offset < kFar && offset > -kFar;
  }
  double residual() const {
    return fused ? static_cast<double>(reference) * static_cast<double>(scale) - static_cast<double>(offset) : 0.0;
  }
};

struct PartialSum {
  double sum;       // of 2^y
  double weighted;  // of 2^y * y, when asked for
  int64_t end;      // where it stopped: at the length, or before the first logits too far above the reference
};

struct GradientMap {
  float constant;  // gradient = slope * 2^y * (constant + linear * y)
  float linear;
};

// How a gradient goes to memory.
template <typename T>
struct GradientMemory {
  bool streamed = false;  // stores past the caches, for outputs that do not fit them; parallel_for puts them in order
  const T* ahead = nullptr;  // n elements to be asked for meanwhile; by default what lies asking().streamed_ahead away

  GradientMemory from(int64_t begin) const { return {streamed, ahead == nullptr ? nullptr : ahead + begin}; }
};

// A gradient of n elements that goes past the caches, of a map that is fused.
template <typename T>
struct StreamedGradient {
  T* out;
  const T* x;
  int64_t n;
  const RowMap& map;
  GradientMap gradient;
};

// What the loops ask of memory ahead of its turn: what a processor does of its own accord differs.
struct Asking {
  uintptr_t ahead = 0;           // how many bytes; 0: what is about to be read, which costs nothing
  uintptr_t streamed_ahead = 0;  // the same in a loop that stores past the caches
  bool outputs = false;          // whether such a loop also asks for one line of every KB that it is about to store
};
const Asking& asking();

template <typename T>
struct RowKernels {
  using Sum = PartialSum (*)(const T* x, int64_t n, const RowMap& map);
  // [cap][entropy][checked]: checked stops before logits that lie too far above the reference; otherwise there are
  // none.
  Sum sum_exp[2][2][2];
  // [cap]; what one logit adds to those sums, to the last bit.
  PartialSum (*term[2])(float x, const RowMap& map);
  // As sum_exp[0][0][checked], and leaves 2^y in place of x. float32 alone, null otherwise.
  PartialSum (*sum_exp_in_place[2])(T* x, int64_t n, const RowMap& map);
  // As sum_exp[0][0][1] of a map that is fused, and makes another row's gradient meanwhile: one computes while the
  // other is stored. float32 on AVX-512 alone, null otherwise.
  PartialSum (*sum_exp_beside)(const T* x, int64_t n, const RowMap& map, const StreamedGradient<T>& other);
  // The largest element, -Infinity for n = 0. A NaN may be passed over: it comes out of the sum.
  float (*max)(const T* x, int64_t n);
  // [cap][entropy]; out may be x.
  void (*gradient[2][2])(T* out, const T* x, int64_t n, const RowMap& map, GradientMap gradient,
                         const GradientMemory<T>& memory);
  // x *= factor; float32 alone, null otherwise.
  void (*scale)(T* x, int64_t n, float factor);
  // A copy past the caches, as streamed gradients, for measuring memory; float32 alone, null otherwise.
  void (*copy_streamed)(T* out, const T* x, int64_t n, const Asking& asking);
  // Zeros past the caches.
  void (*zero_streamed)(T* out, int64_t n);
  // In any dtype, to nearest even; NaNs of 16 bits become quiet.
  void (*to_float32)(float* out, const T* x, int64_t n);
  void (*to_bfloat16)(bf16* out, const T* x, int64_t n);
  void (*to_float16)(f16* out, const T* x, int64_t n);
};

struct IsaKernels {
  const char* name;
  bool fused_multiply_add;
  RowKernels<float> float32;
  RowKernels<bf16> bfloat16;
  RowKernels<f16> float16;
  PolicyKernel policy;
};

// The best that this machine runs, or what FAPO_ISA names (baseline, avx2, avx512) if the machine runs it.
const IsaKernels& isa_kernels();

template <typename T>
const RowKernels<T>& row_kernels();
template <>
inline const RowKernels<float>& row_kernels<float>() {
  return isa_kernels().float32;
}
template <>
inline const RowKernels<bf16>& row_kernels<bf16>() {
  return isa_kernels().bfloat16;
}
template <>
inline const RowKernels<f16>& row_kernels<f16>() {
  return isa_kernels().float16;
}

}  // namespace fapo
