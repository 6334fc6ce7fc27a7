#include "native/simd/row_kernels.h"

#include <cstdlib>
#include <cstring>

#if FAPO_X86
#include <cpuid.h>
#endif

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

// Measured, one thread, 512 x 151,936 float32:
//
// Zen 5 reads at 83 % of the speed of memory in a forward pass that does not ask ahead, at 97 % in one that does, and
// from 8 to 32 KB the distance does not matter. Stores past the caches wait for one another there, and a loop that
// computes waits with them, unless it asks for some lines of what it is about to store, one in 8 to 20, as if to read
// them: nothing published says why. Then a gradient out of place takes 15.3 ms instead of 19.9, a copy 13.8 instead of
// 16.8, zeros alone 5.8 instead of 14; asking for what such a loop does read takes time (15.9 ms instead of 13.4 in one
// run). What comes after Zen 5 in its family was not measured.
//
// Zen 4 does best by itself: asked 4 to 16 KB ahead, its loops take 7 to 16 % longer. Only what stores past the caches,
// a copy above all, gains a few per cent from 2 to 8 KB. Asking for what is stored was not measured there, nor on any
// other.
Asking choose_asking() {
#if FAPO_X86
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__builtin_cpu_is("amd") && __get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
    const uint32_t family = (eax >> 8 & 0xf) + (eax >> 20 & 0xff);
    if (family == 0x1a) return {16384, 0, true};                  // Zen 5
    if (family == 0x19 && has_avx512()) return {0, 4096, false};  // Zen 4; Zen 3 is of the same family
  }
#endif
  return {16384, 16384, false};
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

const Asking& asking() {
  static const Asking asking = choose_asking();
  return asking;
}

const IsaKernels& isa_kernels() {
  static const IsaKernels& kernels = choose();
  return kernels;
}

}  // namespace fapo
