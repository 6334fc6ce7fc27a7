#include "native/simd/row_kernels.h"

#include <cstdlib>
#include <cstring>

namespace fapo {

namespace baseline {
extern const IsaKernels kernels;
}
#if FAPO_X86
namespace avx2 {
extern const IsaKernels kernels;
}
namespace avx512 {
extern const IsaKernels kernels;
}
#endif

namespace {

#if FAPO_X86
// These ask the operating system (XCR0), too. The lists are what -march=x86-64-v3 and -v4 may emit.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
         __builtin_cpu_supports("movbe");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

bool is_zen4() {
#if FAPO_X86
  return __builtin_cpu_is("amdfam19h") && has_avx512();  // Zen 3 is of the same family
#else
  return false;
#endif
}

const IsaKernels& choose() {
#if FAPO_X86
  const char* const name = std::getenv("FAPO_ISA");
  const auto asked_for = [name](const char* isa) { return name && std::strcmp(name, isa) == 0; };
  if (asked_for("baseline")) return baseline::kernels;
  if (has_avx512() && !asked_for("avx2")) return avx512::kernels;
  if (has_avx2()) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace

uintptr_t prefetch_distance(bool streamed) {
  static const bool zen4 = is_zen4();
  if (zen4) return streamed ? 4096 : 0;
  return 16384;
}

const IsaKernels& isa_kernels() {
  static const IsaKernels& kernels = choose();
  return kernels;
}

}  // namespace fapo
