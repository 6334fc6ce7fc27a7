// The thread pool under ThreadSanitizer: several callers at once, changing thread counts, work that is much and little.
// Built and run by scripts/test-sanitize.mjs.
#include "native/parallel.h"

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

std::atomic<int> failures{0};

void expect_every_index_once(int64_t count, int64_t chunk, int64_t bytes) {
  std::vector<int> visits(static_cast<size_t>(count), 0);  // not atomic: two visits of an index would be a race
  fapo::parallel_for(count, chunk, bytes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
  });
  for (const int v : visits) failures += v != 1;
}

void caller(int seed) {
  for (int round = 0; round < 8000; ++round) {
    const int64_t count = (seed * 7919 + round * 104729) % 500;
    const int64_t chunk = 1 + (seed + round) % 9;
    expect_every_index_once(count, chunk, round % 3 == 0 ? 0 : int64_t{1} << 30);
    if (round % 50 == 0) fapo::set_threads(1 + (seed + round) % 9);
  }
}

}  // namespace

int main() {
  fapo::set_threads(4);
  std::vector<std::thread> callers;
  for (int seed = 1; seed <= 4; ++seed) callers.emplace_back(caller, seed);
  for (std::thread& thread : callers) thread.join();
  std::printf("%d indices visited other than once\n", failures.load());
  std::fflush(stdout);
  std::_Exit(failures == 0 ? 0 : 1);  // the pool's threads are never joined
}
