#pragma once
// What the engine's files share: threads, warps, blocks and what they wait for. Nothing in fibers may allocate, or call
// what ThreadSanitizer intercepts: it would be taken for the kernel's own doing.
#include <memory>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace cuda_emulator {

struct Block;
struct Thread;

// A rendezvous of a fixed number of threads. Its clocks take turns, so that a thread that is already in the next phase
// orders nothing for one that is still leaving this one.
struct Barrier {
  unsigned expected = 0, arrived = 0, phase = 0;
  unsigned trues = 0, last_trues = 0;  // predicates of this phase and of the last
  Site site;
  Thread* waiting = nullptr;  // a list through Thread::next_waiting
  char clock[2] = {};
};

struct WarpCall {  // a warp collective that lanes wait in
  WarpOp op = WarpOp::sync;
  unsigned mask = 0, arrived = 0, phase = 0;
  Site site;
  char clock[2] = {};
};

struct Warp {
  WarpCall call[32];  // by the lowest lane of its mask
  uint64_t value[32] = {};
  unsigned source[32] = {};
  unsigned present = 0, exited = 0, ready = 0;  // lanes
  Thread* lane[32] = {};
};

struct Thread {
  uint3 thread_idx{}, block_idx{};
  Fiber fiber;
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned lane = 0, cluster_phase = 0;
  uint64_t result = 0;  // of the collective it waited in
  Thread* next_waiting = nullptr;
  const char* waiting_for = nullptr;  // null: ready or running
  Site site;
  bool done = false;
  // Bulk copies: of the group now open, and which groups it waits for.
  unsigned open_group = 0, awaited_group = 0;
  bool awaits_reads_only = false;
  char copies_read = 0, copies_done = 0;  // clocks
};

struct SharedPiece {
  const void* key = nullptr;  // null: the dynamic one
  char* at = nullptr;
  size_t bytes = 0;
};

struct Block {
  unsigned rank = 0, exited = 0;
  std::vector<Warp> warps;
  Barrier barrier;
  SharedPiece shared[33];
  unsigned shared_pieces = 0;
  char* arena = nullptr;
  size_t arena_used = 0;
};

struct MbarrierState {
  uint64_t* at = nullptr;
  unsigned arrivals = 0, pending = 0, phase = 0;
  int64_t bytes = 0;  // announced and not yet arrived
  Thread* initialiser = nullptr;
  bool fenced = false;
  Thread* waiting = nullptr;  // a list through Thread::next_waiting, all for the running phase
};

struct Copy {
  char* to = nullptr;
  const char* from = nullptr;  // null: `value`
  char value[16] = {};
  unsigned bytes = 0;
  uint64_t* mbarrier = nullptr;  // null: a store to global memory
  Thread* issuer = nullptr;
  unsigned group = 0;
  bool read = false;  // `from` has been read
  Site site;
};

struct Machine {
  Fiber host;
  const Launch* launch = nullptr;
  std::vector<std::unique_ptr<Thread>> pool;
  std::vector<Thread*> threads;  // of the running cluster
  std::vector<Warp*> ready;      // its warps that have a ready lane
  std::vector<Block> blocks;
  Barrier cluster;
  std::vector<Copy> copies;
  std::vector<MbarrierState> mbarriers;
  Thread* running = nullptr;
  unsigned live = 0, threads_per_block = 0;
  uint64_t random = 0;  // state of the generator; 0: nothing is drawn
  uint64_t launches = 0, clusters_run = 0;
  bool run_ahead = false;
  Violation violation;
  char start_clock = 0, end_clock = 0, proxy_clock = 0, fence_clock = 0;
#ifdef CUDA_EMULATOR_TSAN
  void* copy_engine = nullptr;
#endif
  bool failed() const { return violation.error != 0; }
};
extern Machine machine;

// ---- schedule.cpp
uint64_t draw(uint64_t below);
bool chance(unsigned one_in);  // false when nothing is drawn
void make_ready(Thread* thread);
void suspend();  // the running thread has been put among the ready, or waits
void wait_for(const char* what, Site site);
std::string text_of(Site site);
void violate(int error, const std::string& text);  // keeps the first

// ---- shared_memory.cpp
void give_arena(Block& block, size_t dynamic_shared);
void retire_arena(Block& block);
bool in_shared_memory(const Block& block, const void* p, size_t bytes);
void order_whole_device();  // all that kernels did happens before what follows

// ---- copies.cpp
void advance_copy(size_t i);  // reads or writes
void check_no_copies_of(const Block& block);

}  // namespace cuda_emulator
