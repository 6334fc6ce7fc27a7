#pragma once
#include <stdexcept>
#include <string>

namespace fapo {

// The only exception that leaves an op. `code` becomes `error.code` in JavaScript; the message goes on from the op's
// name: "expected tokenIds[3] to be ...".
class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code(code) {}
  const char* code;
};

// For what TypeScript has already checked. Failing one is our bug, or a buffer that shrank in the meantime.
inline void check(bool condition, const char* message) {
  if (!condition) throw Error("ERR_INTERNAL", message);
}

}  // namespace fapo
