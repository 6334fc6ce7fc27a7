#pragma once
// The only threading: our own threads, never libuv's, started on first use and leaked on purpose, so that neither the
// end of the process nor of a worker has to stop them.
#include <chrono>
#include <cstdint>

namespace fapo {

// How many threads an op may use, the caller's among them. Takes effect at the next op.
void set_threads(int32_t threads);
int32_t threads();

// How many of them are worth having for this much work, in bytes of memory that take as long to read: little work
// stays on the calling thread, because waking another takes 20 to 100 us.
int32_t threads_for(int64_t work);

// Looks, for as long as waking a thread takes, whether over() is true: what follows closely finds the threads awake.
// False when it was not.
template <typename Over>
bool look_for(const Over& over) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
  do {
    for (int i = 0; i < 16; ++i) {
      if (over()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

namespace detail {
using ChunkFunction = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t chunk, int64_t work, ChunkFunction fn, const void* context);
}  // namespace detail

// Calls fn(begin, end) for chunks that cover 0..count. Returns when all are done, what they stored past the caches
// included, and no thread holds a pointer of the caller's. `work` is that of the whole loop, as for threads_for. Chunks
// are handed out from the first to the last, and run at once and in any order, so fn writes what depends on its own
// indices alone.
template <typename Fn>
void parallel_for(int64_t count, int64_t chunk, int64_t work, const Fn& fn) {
  detail::parallel_for(
      count, chunk, work,
      [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Fn*>(context))(begin, end); }, &fn);
}

}  // namespace fapo
