#pragma once
// The only threading: our own threads, never libuv's, started on first use and leaked on purpose, so that neither the
// end of the process nor of a worker has to stop them.
#include <cstdint>

namespace fapo {

// How many threads an op may use, the caller's among them. Takes effect at the next op.
void set_threads(int32_t threads);
int32_t threads();

namespace detail {
using ChunkFunction = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t chunk, int64_t bytes, ChunkFunction fn, const void* context);
}  // namespace detail

// Calls fn(begin, end) for chunks that cover 0..count. Returns when all are done and no thread holds a pointer of the
// caller's. `bytes` is the memory the whole loop touches: little work stays on the calling thread, because waking
// another costs about 20 us. Chunks are handed out in any order, so fn writes what depends on its own indices alone.
template <typename Fn>
void parallel_for(int64_t count, int64_t chunk, int64_t bytes, const Fn& fn) {
  detail::parallel_for(
      count, chunk, bytes,
      [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Fn*>(context))(begin, end); }, &fn);
}

}  // namespace fapo
