// Few long rows shared between threads, under ThreadSanitizer: several callers at once get the bits of one thread, and
// a call allocates nothing once the threads have their buffers. Built and run by scripts/test-sanitize.mjs.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "native/backend.h"
#include "native/parallel.h"

namespace {
std::atomic<int64_t> allocations{0};
}

void* operator new(size_t size) {
  ++allocations;
  if (void* const p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

// The CPU's functions are called directly.
const fapo::Backend fapo::kCpuBackend{};
const fapo::CudaLibrary& fapo::cuda_library() { std::abort(); }

namespace {

constexpr int64_t kRows = 3;
constexpr int64_t kVocab = 100'003;

struct Batch {
  std::vector<float> logits = std::vector<float>(kRows * kVocab), grad = logits;
  std::vector<int32_t> ids = {0, 50'000, kVocab - 1};
  std::vector<float> logprobs = std::vector<float>(kRows), lse = logprobs, old = logprobs, advantages = {1, -2, 3};
  float loss = 0, metrics[fapo::kPolicyMetrics] = {};
  int32_t counts[2] = {};

  Batch() {
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = 9 * std::sin(static_cast<float>(i * i % 10'007));
    old.assign(kRows, -11);
  }

  void run(bool in_place) {
    if (in_place) grad = logits;
    fapo::FusedPolicyLoss args;
    const auto size = static_cast<int64_t>(logits.size());
    args.tokens.logits = {in_place ? grad.data() : logits.data(), size, kVocab};
    args.tokens.token_ids = {ids.data(), kRows};
    args.tokens.rows = kRows, args.tokens.vocab = kVocab;
    args.batch.old_logprobs = {old.data(), kRows};
    args.batch.advantages = {advantages.data(), kRows};
    args.batch.loss = {&loss, 1}, args.batch.metrics = {metrics, fapo::kPolicyMetrics}, args.batch.counts = {counts, 2};
    args.in_place = in_place;
    args.logprobs = {logprobs.data(), kRows}, args.lse = {lse.data(), kRows};
    args.grad_logits = {grad.data(), size, kVocab};
    fapo::cpu::fused_policy_loss(args);
  }

  bool operator==(const Batch& other) const {
    return std::memcmp(grad.data(), other.grad.data(), grad.size() * sizeof(float)) == 0 && lse == other.lse &&
           logprobs == other.logprobs && loss == other.loss;
  }
};

}  // namespace

int main() {
  fapo::set_threads(1);
  Batch expected;
  expected.run(false);
  fapo::set_threads(4);

  std::atomic<int> wrong{0};
  const auto caller = [&] {
    Batch batch;
    for (int round = 0; round < 10; ++round) {
      batch.run(round % 2 == 1);
      wrong += !(batch == expected);
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) callers.emplace_back(caller);
  for (std::thread& thread : callers) thread.join();

  Batch batch;
  batch.run(false);
  const int64_t before = allocations;
  for (int round = 0; round < 10; ++round) batch.run(round % 2 == 1);
  const int64_t made = allocations - before;
  std::printf("few long rows: %d calls with other bits than one thread, %lld allocations in 10 calls\n", wrong.load(),
              static_cast<long long>(made));
  std::fflush(stdout);
  std::_Exit(wrong == 0 && made == 0 && before > 0 ? 0 : 1);  // the pool's threads are never joined
}
