#pragma once
// What the emulator tells AddressSanitizer and ThreadSanitizer; nothing in a plain build. Files that include this must
// not be instrumented by ThreadSanitizer themselves, and need not be by AddressSanitizer: CUDA_EMULATOR_TSAN and
// CUDA_EMULATOR_ASAN say that the rest of the program is.
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) && !defined(CUDA_EMULATOR_ASAN)
#define CUDA_EMULATOR_ASAN 1
#endif
#ifdef CUDA_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CUDA_EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
#endif

namespace cuda_emulator {

// What one thread did before release(&clock) happens before what another does after acquire(&clock).
#ifdef CUDA_EMULATOR_TSAN
inline void release(void* clock) { __tsan_release(clock); }
inline void acquire(void* clock) { __tsan_acquire(clock); }
inline void note_read(const void* p, size_t bytes) { __tsan_read_range(const_cast<void*>(p), bytes); }
inline void note_write(void* p, size_t bytes) { __tsan_write_range(p, bytes); }
constexpr bool kFindsRaces = true;
#else
inline void release(void*) {}
inline void acquire(void*) {}
inline void note_read(const void*, size_t) {}
inline void note_write(void*, size_t) {}
constexpr bool kFindsRaces = false;
#endif

#ifdef CUDA_EMULATOR_ASAN
inline void forbid(void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void allow(void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void forbid(void*, size_t) {}
inline void allow(void*, size_t) {}
#endif

}  // namespace cuda_emulator
