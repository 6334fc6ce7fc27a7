#include "native/ops/cast.h"

#include "native/dispatch.h"
#include "native/parallel.h"
#include "native/run_on.h"
#include "native/simd/row_kernels.h"

namespace fapo {

void cast(const Cast& args) {
  check(holds(args.source, args.rows, args.columns), "source does not hold [rows, columns]");
  check(holds(args.result, args.rows, args.columns), "result does not hold [rows, columns]");
  run_on(args.device, &Backend::cast, args);
}

namespace {

template <typename From, typename To>
auto kernel() {
  const RowKernels<From>& kernels = row_kernels<From>();
  if constexpr (std::is_same_v<To, bf16>)
    return kernels.to_bfloat16;
  else if constexpr (std::is_same_v<To, f16>)
    return kernels.to_float16;
  else
    return kernels.to_float32;
}

}  // namespace

void cpu::cast(const Cast& args) {
  dispatch_float(args.source.dtype, [&]<typename From>() {
    dispatch_float(args.result.dtype, [&]<typename To>() {
      const auto cast_row = kernel<From, To>();
      parallel_for(args.rows, 1, args.rows * args.columns * 8, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) cast_row(args.result.row<To>(i), args.source.row<From>(i), args.columns);
      });
    });
  });
}

}  // namespace fapo
