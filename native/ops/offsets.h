#pragma once
#include <string>

#include "native/error.h"
#include "native/tensor.h"

namespace fapo {

// Prefix sums must start at 0, never fall, and end at `total`.
inline void check_offsets(const char* name, const Array<const int32_t>& offsets, int64_t total, const char* of_what) {
  int64_t previous = 0;
  for (int64_t k = 0; k < offsets.size; ++k) {
    const int64_t offset = load_once(offsets[k]);
    const bool last = k + 1 == offsets.size;
    if (k == 0 ? offset == 0 : offset >= previous && offset <= total) {
      previous = offset;
      if (!last || offset == total) continue;
    }
    const auto expected = [&]() -> std::string {
      if (k == 0 && offset != 0) return "0";
      if (last) return std::to_string(total) + ", " + of_what;
      return "at least " + std::to_string(previous) + " and at most " + std::to_string(total);
    };
    throw Error("ERR_INVALID_ARGUMENT", std::string("expected ") + name + "[" + std::to_string(k) + "] to be " +
                                            expected() + ", got " + std::to_string(offset));
  }
}

}  // namespace fapo
