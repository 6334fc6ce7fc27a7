#pragma once
// How the CPU walks over rows of logits.
#include <cstring>

#include "native/ops/token_logprob.h"
#include "native/parallel.h"
#include "native/simd/row_softmax.h"

namespace fapo {

constexpr int64_t kIgnored = -1;

// The target of a row, read once and fit to be an index, or kIgnored. The ids were checked before; one that another
// thread has changed since (SharedArrayBuffer) is taken for an ignored row.
inline int64_t counted_target(const TokenLogits& tokens, int64_t row) {
  if (tokens.response_mask && load_once(tokens.response_mask[row]) == 0) return kIgnored;
  const int64_t id = load_once(tokens.token_ids[row]);
  return id == tokens.ignore_index || id < 0 || id >= tokens.vocab ? kIgnored : id;
}

// fn(row index, CpuSoftmaxRow<T>&) for every row, on all threads.
template <typename T, typename Fn>
void for_each_row(const TokenLogits& tokens, const Fn& fn) {
  const int64_t row_bytes = tokens.vocab * static_cast<int64_t>(sizeof(T));
  // Few enough rows a chunk to balance the threads, enough to pay for the counter: about 64 KB.
  const int64_t chunk = 1 + (int64_t{64} << 10) / row_bytes;
  parallel_for(tokens.rows, chunk, tokens.rows * row_bytes, [&](int64_t begin, int64_t end) {
    CpuSoftmaxRow<T> row(tokens.scale, tokens.vocab);
    for (int64_t i = begin; i < end; ++i) fn(i, row);
  });
}

// Whether an output of this size is better written past the caches: 32 MB is the last-level cache of a large server
// part, and what is larger would only evict what is still to be read.
template <typename T>
bool exceeds_caches(const TokenLogits& tokens) {
  return tokens.rows * tokens.vocab * static_cast<int64_t>(sizeof(T)) > (int64_t{32} << 20);
}

template <typename T>
void fill_zero(T* out, int64_t n) {
  std::memset(static_cast<void*>(out), 0, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace fapo
