// Runs the clusters of a launch, and decides which thread goes on.
#include <cstdarg>
#include <cstdio>
#include <map>
#include <utility>

#include "machine.h"

namespace cuda_emulator {

Machine machine;

namespace {

struct KernelStopped {};  // thrown inside a fiber to leave the kernel

uint64_t mixed(uint64_t z) {  // splitmix64
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

uint64_t number_of(const char* text, uint64_t otherwise) { return text ? std::strtoull(text, nullptr, 10) : otherwise; }

std::string formatted(const char* format, va_list arguments) {
  char text[700];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

std::string name_of(const Thread& thread) {
  char text[120];
  const uint3 &b = thread.block_idx, &t = thread.thread_idx;
  snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

// Seed 0: one warp runs ahead as far as it can, lowest lane first. Other seeds draw, per cluster, one of two habits:
// change the warp at every step, or let drawn warps run far ahead.
Thread* pick() {
  Machine& m = machine;
  while (!m.copies.empty() && (m.ready.empty() || chance(8))) advance_copy(m.random ? draw(m.copies.size()) : 0);
  if (m.ready.empty()) return nullptr;
  size_t i = m.ready.size() - 1;
  if (m.random && (!m.run_ahead || chance(200))) i = draw(m.ready.size());
  Warp* warp = m.ready[i];
  unsigned lanes = warp->ready;
  for (uint64_t skip = m.random ? draw(static_cast<unsigned>(__builtin_popcount(lanes))) : 0; skip; --skip) {
    lanes &= lanes - 1;
  }
  const auto lane = static_cast<unsigned>(__builtin_ctz(lanes));
  warp->ready &= ~(1u << lane);
  m.ready[i] = m.ready.back();
  m.ready.back() = warp;  // goes on next time
  if (!warp->ready) {
    m.ready.pop_back();
    if (m.run_ahead && m.random && !m.ready.empty()) std::swap(m.ready[draw(m.ready.size())], m.ready.back());
  }
  return warp->lane[lane];
}

void resume(Fiber& from, Thread* thread, bool dying) {
  machine.running = thread;
  if (thread) threadIdx = thread->thread_idx, blockIdx = thread->block_idx;
  Fiber::switch_between(from, thread ? thread->fiber : machine.host, dying);
}

void check_nobody_waits_for(const Thread& thread) {
  const Barrier& barrier = thread.block->barrier;
  if (barrier.arrived) {
    fail(kLaunchFailure, "divergent __syncthreads: a thread exited while %u of its block wait at %s", barrier.arrived,
         text_of(barrier.site).c_str());
  }
  const Barrier& cluster = machine.cluster;
  if (cluster.arrived && machine.blocks.size() > 1) {
    fail(kLaunchFailure, "a thread exited while %u of its cluster are at the cluster barrier at %s", cluster.arrived,
         text_of(cluster.site).c_str());
  }
  for (const WarpCall& call : thread.warp->call) {
    if (call.arrived && call.mask >> thread.lane & 1) {
      fail(kLaunchFailure, "a lane that mask %08x names exited while others wait for it at %s", call.mask,
           text_of(call.site).c_str());
    }
  }
}

void run_thread(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  acquire(&machine.start_clock);
  try {
    machine.launch->body();
    thread.warp->exited |= 1u << thread.lane;
    ++thread.block->exited;
    check_nobody_waits_for(thread);
    if (thread.block->exited == machine.threads_per_block) {
      check_no_copies_of(*thread.block);
      retire_arena(*thread.block);
    }
  } catch (const KernelStopped&) {
  }
  thread.done = true;
  --machine.live;
  resume(thread.fiber, machine.failed() ? nullptr : pick(), true);
}

std::string deadlock() {
  std::map<std::string, unsigned> waits;
  for (const Thread* thread : machine.threads) {
    if (!thread->done) ++waits[std::string(thread->waiting_for) + " at " + text_of(thread->site)];
  }
  std::string text = "deadlock: ";
  for (const auto& [what, threads] : waits) text += std::to_string(threads) + " threads wait for " + what + ", ";
  return text + std::to_string(machine.threads.size() - machine.live) + " have exited";
}

// Races between blocks are seen only where blocks that follow each other run as different ThreadSanitizer threads, of
// which there are 8128 at most.
size_t first_in_pool(size_t threads) {
  Machine& m = machine;
  constexpr size_t kMostFibers = 8000;
  const size_t set = kFindsRaces && threads * 2 < kMostFibers ? m.clusters_run++ % 2 : 0;
  while (m.pool.size() < threads * (set + 1)) m.pool.push_back(std::make_unique<Thread>());
  return set * threads;
}

void prepare_cluster(const Launch& launch, dim3 first) {
  Machine& m = machine;
  const unsigned ranks = launch.cluster.x * launch.cluster.y * launch.cluster.z;
  const size_t threads = size_t{m.threads_per_block} * ranks;
  const size_t first_thread = first_in_pool(threads);
  m.threads.clear();
  m.ready.clear();
  m.copies.clear();
  m.mbarriers.clear();
  m.ready.reserve(threads / 32 + ranks);
  m.copies.reserve(65536);
  m.mbarriers.reserve(1024);
  m.blocks = std::vector<Block>(ranks);
  m.cluster = Barrier{};
  m.run_ahead = m.random && draw(2);
  for (unsigned rank = 0; rank < ranks; ++rank) {
    Block& block = m.blocks[rank];
    block.rank = rank;
    block.warps.resize((m.threads_per_block + 31) / 32);
    give_arena(block, launch.dynamic_shared);
    const unsigned x = launch.cluster.x, y = launch.cluster.y;
    const uint3 index{first.x + rank % x, first.y + rank / x % y, first.z + rank / (x * y)};
    for (unsigned i = 0; i < m.threads_per_block; ++i) {
      Thread& thread = *m.pool[first_thread + size_t{rank} * m.threads_per_block + i];
      thread.thread_idx = {i % launch.block.x, i / launch.block.x % launch.block.y,
                           i / (launch.block.x * launch.block.y)};
      thread.block_idx = index;
      thread.block = &block;
      thread.warp = &block.warps[i / 32];
      thread.lane = i % 32;
      thread.warp->lane[thread.lane] = &thread;
      thread.warp->present |= 1u << thread.lane;
      thread.waiting_for = nullptr;
      thread.done = false;
      thread.open_group = 0;
      thread.fiber.start(run_thread, &thread);
      m.threads.push_back(&thread);
    }
  }
  m.live = static_cast<unsigned>(m.threads.size());
  for (auto thread = m.threads.rbegin(); thread != m.threads.rend(); ++thread) make_ready(*thread);
}

void run_cluster() {
  Machine& m = machine;
  while (!m.failed() && m.live) {
    if (Thread* thread = pick()) {
      resume(m.host, thread, false);
    } else {
      violate(kLaunchFailure, deadlock());
    }
  }
  while (!m.failed() && !m.copies.empty()) advance_copy(0);
  if (!m.failed()) return;
  for (Thread* thread : m.threads) {
    if (!thread->done) thread->fiber.abandon();
  }
}

}  // namespace

Settings& settings() {
  static Settings it = [] {
    const uint64_t seed = number_of(getenv("CUDA_EMU_SEED"), 0);
    return Settings{seed, number_of(getenv("CUDA_EMU_NOISE"), seed)};
  }();
  return it;
}

Violation run(const Launch& launch) {
  Machine& m = machine;
  m.violation = {};
  if (!launch.arguments_are_on_device(launch.device)) {
    return {kIllegalAddress, "a kernel argument does not point to live memory of the device"};
  }
  m.launch = &launch;
  m.random = settings().seed ? mixed(settings().seed + ++m.launches * 0x9e3779b97f4a7c15) | 1 : 0;
  m.threads_per_block = launch.block.x * launch.block.y * launch.block.z;
  blockDim = launch.block;
  gridDim = launch.grid;
  m.host.adopt_running_thread();
  release(&m.start_clock);
  const dim3 c = launch.cluster;
  const unsigned x = launch.grid.x / c.x, y = launch.grid.y / c.y, z = launch.grid.z / c.z;
  std::vector<unsigned> order(size_t{x} * y * z);
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t j = m.random ? draw(i + 1) : i;
    order[i] = order[j];
    order[j] = static_cast<unsigned>(i);
  }
  for (const unsigned i : order) {
    prepare_cluster(launch, dim3(i % x * c.x, i / x % y * c.y, i / (x * y) * c.z));
    run_cluster();
    if (m.failed()) break;
  }
  m.running = nullptr;
  order_whole_device();
  return m.violation;
}

void violate(int error, const std::string& text) {
  if (machine.failed()) return;
  machine.violation = {error, text};
  if (machine.running) machine.violation.text += " [" + name_of(*machine.running) + "]";
}

void fail(int error, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  violate(error, formatted(format, arguments));
  va_end(arguments);
  throw KernelStopped{};
}

std::string text_of(Site site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }

uint64_t draw(uint64_t below) { return mixed(machine.random += 0x9e3779b97f4a7c15) % below; }
bool chance(unsigned one_in) { return machine.random && draw(one_in) == 0; }

void make_ready(Thread* thread) {
  thread->waiting_for = nullptr;
  if (!thread->warp->ready) machine.ready.push_back(thread->warp);
  thread->warp->ready |= 1u << thread->lane;
}

void suspend() {
  Thread* self = machine.running;
  Thread* next = machine.failed() ? nullptr : pick();
  if (next != self) resume(self->fiber, next, false);
  if (machine.failed()) throw KernelStopped{};
}

void wait_for(const char* what, Site site) {
  machine.running->waiting_for = what;
  machine.running->site = site;
  suspend();
}

void reschedule() {
  make_ready(machine.running);
  suspend();
}

void fence() {
  acquire(&machine.fence_clock);
  release(&machine.fence_clock);
}

void check_aligned(const void* p, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
  fail(kMisalignedAddress, "misaligned access of %zu bytes at address %p, at %s", bytes, p, text_of(site).c_str());
}

unsigned lane_id() { return machine.running->lane; }
unsigned cluster_rank() { return machine.running->block->rank; }
unsigned cluster_size() { return static_cast<unsigned>(machine.blocks.size()); }

double noise_of(uint32_t bits) {
  const uint64_t seed = settings().noise;
  if (!seed) return 0.0;
  return static_cast<double>(static_cast<int64_t>(mixed(seed * 0x9e3779b97f4a7c15 + bits))) * 0x1p-63;
}

}  // namespace cuda_emulator
