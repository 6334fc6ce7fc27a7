#pragma once
// A suspended flow of control with a stack of its own, whose switches AddressSanitizer and ThreadSanitizer are told of.
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "sanitizers.h"

extern "C" void cuda_emulator_switch(void** saved_stack, void* next_stack);
extern "C" void cuda_emulator_start();

namespace cuda_emulator {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 << 10;
  static constexpr size_t kGuardBytes = 16 << 10;  // an overflow faults instead of reaching a neighbour

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (!memory_) return;
    munmap(memory_, kStackBytes);
#ifdef CUDA_EMULATOR_TSAN
    if (tsan_) __tsan_destroy_fiber(tsan_);
#endif
  }

  // Makes this object stand for the host thread that is running.
  void adopt_running_thread() {
#ifdef CUDA_EMULATOR_TSAN
    tsan_ = __tsan_get_current_fiber();
#endif
  }

  // Arranges for entry(argument) to run on a fresh stack at the next switch to this fiber. `entry` never returns.
  void start(void (*entry)(void*), void* argument) {
    if (!memory_) {
      void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      memory_ = static_cast<char*>(memory);
      mprotect(memory_, kGuardBytes, PROT_NONE);
    }
    // The frames it stopped in; all deeper ones were left.
    if (stack_) allow(stack_, static_cast<size_t>(memory_ + kStackBytes - static_cast<char*>(stack_)));
#ifdef CUDA_EMULATOR_ASAN
    fake_stack_ = nullptr;
#endif
#ifdef CUDA_EMULATOR_TSAN
    if (abandoned_) __tsan_destroy_fiber(tsan_), tsan_ = nullptr, abandoned_ = false;  // its call stack is stale
    if (!tsan_) tsan_ = __tsan_create_fiber(0);
#endif
    entry_ = entry;
    argument_ = argument;
    auto* top = reinterpret_cast<void**>(memory_ + kStackBytes);
#if defined(__x86_64__)
    void** stack = top - 9;  // r15 r14 r13 r12 rbx rbp, return address, two words so that calls find it aligned
    for (int i = 0; i < 9; ++i) stack[i] = nullptr;
    stack[3] = this;
    stack[4] = reinterpret_cast<void*>(&Fiber::run);
    stack[6] = reinterpret_cast<void*>(&cuda_emulator_start);
#elif defined(__aarch64__)
    void** stack = top - 20;  // x19 ... x28, x29, x30, d8 ... d15
    for (int i = 0; i < 20; ++i) stack[i] = nullptr;
    stack[0] = this;
    stack[1] = reinterpret_cast<void*>(&Fiber::run);
    stack[11] = reinterpret_cast<void*>(&cuda_emulator_start);
#endif
    stack_ = stack;
  }

  // It will not go on where it stopped: its launch has failed.
  void abandon() {
#ifdef CUDA_EMULATOR_TSAN
    abandoned_ = true;
#endif
  }

  // Suspends `from`, which is running, and resumes `to`. One that is dying is never resumed.
  static void switch_between(Fiber& from, Fiber& to, [[maybe_unused]] bool dying) {
    came_from() = &from;
#ifdef CUDA_EMULATOR_ASAN
    __sanitizer_start_switch_fiber(dying ? nullptr : &from.fake_stack_, to.bottom(), to.size());
#endif
#ifdef CUDA_EMULATOR_TSAN
    __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
    cuda_emulator_switch(&from.stack_, to.stack_);
    from.arrived();
  }

#ifdef CUDA_EMULATOR_TSAN
  void* tsan() const { return tsan_; }
#endif

 private:
  static Fiber*& came_from() {
    static Fiber* fiber = nullptr;  // one kernel runs at a time
    return fiber;
  }
  static void run(Fiber* self) {
    self->arrived();
    self->entry_(self->argument_);
    std::abort();
  }
  void arrived() {
#ifdef CUDA_EMULATOR_ASAN
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
    Fiber* from = came_from();
    if (!from->memory_) from->host_bottom_ = bottom, from->host_size_ = size;
#endif
  }
#ifdef CUDA_EMULATOR_ASAN
  const void* bottom() const { return memory_ ? memory_ + kGuardBytes : host_bottom_; }
  size_t size() const { return memory_ ? kStackBytes - kGuardBytes : host_size_; }
  void* fake_stack_ = nullptr;
  const void* host_bottom_ = nullptr;
  size_t host_size_ = 0;
#endif
#ifdef CUDA_EMULATOR_TSAN
  void* tsan_ = nullptr;
  bool abandoned_ = false;
#endif
  char* memory_ = nullptr;
  void* stack_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace cuda_emulator
