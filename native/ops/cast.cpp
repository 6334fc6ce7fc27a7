#include "native/ops/cast.h"

#include "native/dispatch.h"
#include "native/parallel.h"
#include "native/run_on.h"

namespace fapo {

void cast(const Cast& args) {
  check(holds(args.source, args.rows, args.columns), "source does not hold [rows, columns]");
  check(holds(args.result, args.rows, args.columns), "result does not hold [rows, columns]");
  run_on(args.device, &Backend::cast, args);
}

void cpu::cast(const Cast& args) {
  dispatch_float(args.source.dtype, [&]<typename From>() {
    dispatch_float(args.result.dtype, [&]<typename To>() {
      parallel_for(args.rows, 1, args.rows * args.columns * 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const From* source = args.source.row<From>(row);
          To* result = args.result.row<To>(row);
          for (int64_t i = 0; i < args.columns; ++i) result[i] = from_float<To>(to_float(source[i]));
        }
      });
    });
  });
}

}  // namespace fapo
