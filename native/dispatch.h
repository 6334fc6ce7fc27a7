#pragma once
#include "native/error.h"
#include "native/half.h"
#include "native/tensor.h"

namespace fapo {

// Calls fn.template operator()<T>() with the C++ type of a floating-point dtype. A new dtype adds its line here.
template <typename Fn>
decltype(auto) dispatch_float(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::float32:
      return fn.template operator()<float>();
    case DType::bfloat16:
      return fn.template operator()<bf16>();
    case DType::float16:
      return fn.template operator()<f16>();
    default:
      throw Error("ERR_UNSUPPORTED_DTYPE", "expected a floating-point dtype");
  }
}

}  // namespace fapo
