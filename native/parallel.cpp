#include "native/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace fapo {
namespace {

#ifdef __linux__
int current_cpu() { return sched_getcpu(); }

// Moves the calling thread away from a CPU, if it may run on another, and lets it go where it likes afterwards. A woken
// thread tends to be queued behind the one that woke it, and stays there while other CPUs idle: seen on a virtual
// machine of two cores, where two threads took as long as one.
void leave_cpu(int cpu) {
  cpu_set_t allowed, others;
  if (cpu < 0 || sched_getcpu() != cpu || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(static_cast<size_t>(cpu), &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int current_cpu() { return -1; }
void leave_cpu(int) {}
#endif

constexpr int32_t kMaxThreads = 256;
constexpr int64_t kWorthWaking = 1 << 19;  // bytes; at 20 GB/s that is 25 us

struct Loop {
  detail::ChunkFunction fn;
  const void* context;
  int64_t count;
  int64_t chunk;
  int caller_cpu;
  std::atomic<int64_t> next{0};

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= count) return publish();
      fn(context, begin, std::min(begin + chunk, count));
    }
  }

  // What was stored past the caches has no order with other stores, that the loop is done among them.
  static void publish() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
  }
};

// A worker takes part in a loop only by joining it while it is open, and the caller waits only for those who joined:
// a thread that is slow to wake, or that a fork() left behind, delays nobody.
class Pool {
 public:
  static Pool& instance() {
    static Pool* const pool = new Pool;  // never destroyed: its threads outlive every static destructor
    return *pool;
  }

  // False when another caller's loop is using the pool.
  bool run(Loop& loop, int32_t helpers) {
    if (busy_.test_and_set(std::memory_order_acquire)) return false;
    start(helpers);

    loop_ = &loop;
    wanted_.store(helpers, std::memory_order_relaxed);
    const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
    members_.store(open(generation), std::memory_order_release);
    generation_.store(generation, std::memory_order_release);
    generation_.notify_all();

    loop.work();

    uint64_t members = members_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
    if (count(members) != 0) {
      look_for([&] { return count(members = members_.load(std::memory_order_acquire)) == 0; });
    }
    while (count(members) != 0) {
      members_.wait(members, std::memory_order_acquire);
      members = members_.load(std::memory_order_acquire);
    }
    busy_.clear(std::memory_order_release);
    return true;
  }

 private:
  // generation | closed | number of workers inside
  static constexpr uint64_t kClosed = uint64_t{1} << 31;
  static uint64_t open(uint32_t generation) { return uint64_t{generation} << 32; }
  static uint64_t count(uint64_t members) { return members & (kClosed - 1); }

  void start(int32_t helpers) {
    while (started_ < helpers) {
      try {
        std::thread([this, index = started_] { serve(index); }).detach();
      } catch (const std::exception&) {
        return;  // the loop runs on fewer threads
      }
      ++started_;
    }
  }

  void serve(int32_t index) {
    uint32_t seen = 0;
    for (;;) {
      if (seen != 0) look_for([&] { return generation_.load(std::memory_order_relaxed) != seen; });
      generation_.wait(seen, std::memory_order_acquire);
      seen = generation_.load(std::memory_order_acquire);
      uint64_t members = members_.load(std::memory_order_acquire);
      bool joined = false;
      while (!joined && members >> 32 == seen && (members & kClosed) == 0 &&
             index < wanted_.load(std::memory_order_relaxed)) {
        joined = members_.compare_exchange_weak(members, members + 1, std::memory_order_acq_rel);
      }
      if (!joined) continue;
      leave_cpu(loop_->caller_cpu);
      loop_->work();
      if (count(members_.fetch_sub(1, std::memory_order_acq_rel)) == 1) members_.notify_all();
    }
  }

  std::atomic_flag busy_;
  int32_t started_ = 0;
  Loop* loop_ = nullptr;
  std::atomic<int32_t> wanted_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<uint64_t> members_{kClosed};
};

int32_t default_threads() {
  return std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

std::atomic<int32_t>& thread_count() {
  static std::atomic<int32_t> count{default_threads()};
  return count;
}

}  // namespace

void set_threads(int32_t threads) { thread_count().store(std::clamp(threads, 1, kMaxThreads)); }

int32_t threads() { return thread_count().load(); }

int32_t threads_for(int64_t work) { return work < kWorthWaking ? 1 : threads(); }

void detail::parallel_for(int64_t count, int64_t chunk, int64_t work, ChunkFunction fn, const void* context) {
  if (count <= 0) return;
  const int64_t chunks = (count + chunk - 1) / chunk;
  const auto helpers = static_cast<int32_t>(std::min<int64_t>(threads_for(work), chunks) - 1);
  Loop loop{fn, context, count, chunk, current_cpu()};
  if (helpers < 1 || !Pool::instance().run(loop, helpers)) loop.work();
}

}  // namespace fapo
