#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fapo {

// The only exception that leaves an op. `code` becomes `error.code` in JavaScript; the message goes on from the op's
// name: "expected tokenIds[3] to be ...".
class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code(code) {}
  Error(const char* code, const std::string& message, int32_t cuda_error, const char* cuda_error_name)
      : std::runtime_error(message), code(code), cuda_error(cuda_error), cuda_error_name(cuda_error_name) {}
  const char* code;
  int32_t cuda_error = 0;  // what the CUDA runtime said, where it did; the message has it, too
  const char* cuda_error_name = nullptr;
};

// For what TypeScript has already checked. Failing one is our bug, or a buffer that shrank in the meantime.
inline void check(bool condition, const char* message) {
  if (!condition) throw Error("ERR_INTERNAL", message);
}

}  // namespace fapo
