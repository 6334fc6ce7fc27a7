#pragma once
// How the CPU walks over rows of logits.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <thread>
#include <utility>
#include <vector>

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

// Asks for the target's logit of a row, with which it begins, and for its first 2 KB: between two rows, half a
// microsecond at the end of a forward pass, nothing else would be asked of memory.
template <typename T>
void prefetch_row(const TokenLogits& tokens, int64_t row) {
  if (row >= tokens.rows) return;
  const int64_t target = counted_target(tokens, row);
  if (target == kIgnored) return;
  const T* const x = tokens.row<T>(row);
  __builtin_prefetch(x + target);
  constexpr int64_t kLine = 64 / sizeof(T), kLines = 32;
  const int64_t head = std::min(kLines * kLine, tokens.vocab);
  for (int64_t j = 0; j < head; j += kLine) __builtin_prefetch(x + j);
}

// An op over rows: for each row start(row, more), then kPasses times parts(pass, first, last), of all parts of the row
// at once or of some at a time, and end(pass). The object is of one row at a time, and parts of a pass may run at once.
// `more`: the row after it is the next of this thread.
//
//   struct Op {
//     static constexpr int kPasses;
//     Op(const Args& args, const RowParts& parts);
//     void start(int64_t row, bool more);
//     void parts(int pass, int64_t first, int64_t last);  // [first, last)
//     void end(int pass);
//   };

// A row that threads share. Moved only while none does.
template <typename Op>
struct SharedRow {
  Op op;
  std::atomic<int64_t> parts_left[Op::kPasses] = {};
  std::atomic<int> passes_done{0};

  template <typename Args>
  SharedRow(const Args& args, const RowParts& parts) : op(args, parts) {
    for (auto& left : parts_left) left.store(parts.count, std::memory_order_relaxed);
  }
  SharedRow(SharedRow&& other) noexcept : op(std::move(other.op)) {}

  void run(int pass, int64_t part) {
    // Whoever has the parts before is at work on them: they were handed out earlier.
    while (!look_for([&] { return passes_done.load(std::memory_order_acquire) >= pass; })) std::this_thread::yield();
    op.parts(pass, part, part + 1);
    if (parts_left[pass].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    op.end(pass);
    passes_done.store(pass + 1, std::memory_order_release);
  }
};

// std::allocator but for its check of a size that overflows, for which GCC wants a libstdc++ newer than we ask for.
// Here n is eight for each thread at the most.
template <typename T>
struct FewAllocator {
  using value_type = T;
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T))); }
  void deallocate(T* p, size_t) { ::operator delete(p); }
  bool operator==(const FewAllocator&) const = default;
};

// Few rows: all threads on the parts of each. A pass over a row comes `lag` rows after the one before, so that nobody
// waits for the last part of it.
template <typename Op, typename Args>
void share_rows(const Args& args, int64_t rows, const RowParts& parts, int64_t work, int32_t threads) {
  // Kept, so that a training loop allocates nothing.
  thread_local std::vector<SharedRow<Op>, FewAllocator<SharedRow<Op>>> shared;
  shared.clear();
  shared.reserve(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) shared.emplace_back(args, parts).op.start(i, false);
  const int64_t lag = 1 + threads / parts.count;
  const int64_t per_step = Op::kPasses * parts.count;
  const auto run = [&rows_of = shared, &parts, rows, lag, per_step](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t step = i / per_step, within = i % per_step;
      const int64_t pass = within / parts.count, row = step - pass * lag;
      if (row < 0 || row >= rows) continue;
      rows_of[static_cast<size_t>(row)].run(static_cast<int>(pass), within % parts.count);
    }
  };
  parallel_for((rows + (Op::kPasses - 1) * lag) * per_step, 1, work, run);
}

// Runs Op(args, parts) over every row, on all threads.
template <typename Op, typename Args>
void for_each_row(const Args& args, const TokenLogits& tokens) {
  const RowParts parts(tokens.vocab);
  constexpr int64_t kBytesLike = 4;  // a pass over an element takes as long as this much memory, whatever the dtype
  const int64_t row_work = Op::kPasses * tokens.vocab * kBytesLike;
  const int64_t work = tokens.rows * row_work;
  const int32_t threads = threads_for(work);
  constexpr int64_t kEvenly = 8;  // rows a thread, to keep all of them busy to the end
  if (threads > 1 && parts.count > 1 && tokens.rows < kEvenly * threads) {
    return share_rows<Op>(args, tokens.rows, parts, work, threads);
  }
  // Few enough rows a chunk to balance the threads, enough to pay for the counter, about 64 KB; of many rows a few
  // more, so that most have one after them.
  constexpr int64_t kFew = 8, kBalanced = 32;
  const int64_t chunk =
      std::max(1 + (int64_t{64} << 10) / row_work, std::min(kFew, tokens.rows / (kBalanced * threads)));
  parallel_for(tokens.rows, threads > 1 ? chunk : tokens.rows, work, [&](int64_t begin, int64_t end) {
    Op op(args, parts);
    for (int64_t i = begin; i < end; ++i) {
      op.start(i, i + 1 < end);
      for (int pass = 0; pass < Op::kPasses; ++pass) {
        op.parts(pass, 0, parts.count);
        op.end(pass);
      }
    }
  });
}

// Whether an output is better written past the caches: 32 MB is the last-level cache of a large server part, and what
// is larger would only evict what is still to be read. The ends of a row and its target are written the ordinary way,
// into lines that have left the caches by then; on Zen 5 that is worth it for rows of more than 4 KB.
template <typename T>
bool worth_streaming(const TokenLogits& tokens) {
  const int64_t row = tokens.vocab * static_cast<int64_t>(sizeof(T));
  return row > (int64_t{4} << 10) && tokens.rows * row > (int64_t{32} << 20);
}

// streamed: past the caches, for what was not read just now.
template <typename T>
void fill_zero(T* out, const RowParts& parts, int64_t first, int64_t last, bool streamed) {
  const int64_t begin = parts.begin(first), n = parts.end(last - 1) - begin;
  if (streamed) return row_kernels<T>().zero_streamed(out + begin, n);
  std::memset(static_cast<void*>(out + begin), 0, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace fapo
