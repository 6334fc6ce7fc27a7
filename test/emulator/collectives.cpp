// Barriers and warp collectives: a rendezvous of threads, each checked against what the others called.
#include <cstring>

#include "machine.h"

namespace cuda_emulator {
namespace {

bool same_line(Site a, Site b) {
  const char *x = a.file_name(), *y = b.file_name();
  return a.line() == b.line() && (x == y || std::strcmp(x, y) == 0);
}
bool same(Site a, Site b) { return a.column() == b.column() && same_line(a, b); }

void complete(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.phase;
  barrier.last_trues = barrier.trues;
  barrier.trues = 0;
  for (Thread* thread = barrier.waiting; thread; thread = thread->next_waiting) make_ready(thread);
  barrier.waiting = nullptr;
}

// Returns the phase to wait for.
unsigned arrive(Barrier& barrier, unsigned expected, bool predicate, const char* what, Site site) {
  if (barrier.arrived == 0) {
    barrier.site = site;
    barrier.expected = expected;
  } else if (!same_line(site, barrier.site)) {
    fail(kLaunchFailure, "divergent %s: %u threads are at %s, another reached %s", what, barrier.arrived,
         text_of(barrier.site).c_str(), text_of(site).c_str());
  }
  const unsigned phase = barrier.phase;
  release(&barrier.clock[phase & 1]);
  barrier.trues += predicate;
  if (++barrier.arrived == barrier.expected) complete(barrier);
  return phase;
}

void wait(Barrier& barrier, unsigned phase, const char* what, Site site) {
  Thread* thread = machine.running;
  if (barrier.phase == phase) {
    thread->next_waiting = barrier.waiting;
    barrier.waiting = thread;
    wait_for(what, site);
  } else if (chance(2)) {
    reschedule();  // the last to arrive need not be the first to go on
  }
  acquire(&barrier.clock[phase & 1]);
}

uint64_t combined(WarpOp op, uint64_t a, uint64_t b) {
  const auto u = static_cast<uint32_t>(a), v = static_cast<uint32_t>(b);
  const auto i = static_cast<int32_t>(u), j = static_cast<int32_t>(v);
  switch (op) {
    case WarpOp::add:
      return u + v;
    case WarpOp::min_unsigned:
      return u < v ? u : v;
    case WarpOp::max_unsigned:
      return u > v ? u : v;
    case WarpOp::min_signed:
      return static_cast<uint32_t>(i < j ? i : j);
    case WarpOp::max_signed:
      return static_cast<uint32_t>(i > j ? i : j);
    case WarpOp::all_of:
      return u & v;
    case WarpOp::any_of:
    case WarpOp::ballot:
      return u | v;
    case WarpOp::odd:
      return u ^ v;
    case WarpOp::sync:
    case WarpOp::shuffle:
      break;
  }
  return 0;
}

void finish(Warp& warp, const WarpCall& call) {
  uint64_t all = 0;
  bool first = true;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(call.mask >> i & 1)) continue;
    const uint64_t value = call.op == WarpOp::ballot ? uint64_t{warp.value[i] != 0} << i : warp.value[i];
    all = first ? value : combined(call.op, all, value);
    first = false;
  }
  for (unsigned i = 0; i < 32; ++i) {
    if (!(call.mask >> i & 1)) continue;
    warp.lane[i]->result = all;
    if (call.op != WarpOp::shuffle) continue;
    const unsigned from = warp.source[i];
    if (!(call.mask >> from & 1)) {
      fail(kLaunchFailure, "shuffle at %s: lane %u reads lane %u, which is not in mask %08x",
           text_of(call.site).c_str(), i, from, call.mask);
    }
    warp.lane[i]->result = warp.value[from];
  }
}

void check_mask(const Warp& warp, unsigned lane, unsigned mask, Site site) {
  const char* problem = !(mask >> lane & 1)    ? "does not name the lane that calls"
                        : mask & ~warp.present ? "names lanes that do not exist"
                        : mask & warp.exited   ? "names lanes that have exited"
                                               : nullptr;
  if (problem) {
    fail(kLaunchFailure, "warp collective at %s: mask %08x %s", text_of(site).c_str(), mask, problem);
  }
}

}  // namespace

unsigned block_barrier(bool predicate, Site site) {
  Block& block = *machine.running->block;
  if (block.exited) {
    fail(kLaunchFailure, "divergent __syncthreads at %s: %u threads of the block have exited", text_of(site).c_str(),
         block.exited);
  }
  const unsigned phase = arrive(block.barrier, machine.threads_per_block, predicate, "__syncthreads", site);
  wait(block.barrier, phase, "__syncthreads", site);
  return block.barrier.last_trues;
}

void cluster_arrive(Site site) {
  for (const Block& block : machine.blocks) {
    if (block.exited) {
      fail(kLaunchFailure, "cluster barrier at %s: threads of block %u of the cluster have exited",
           text_of(site).c_str(), block.rank);
    }
  }
  const auto expected = static_cast<unsigned>(machine.threads.size());
  machine.running->cluster_phase = arrive(machine.cluster, expected, false, "cluster barrier", site);
}
void cluster_wait(Site site) { wait(machine.cluster, machine.running->cluster_phase, "cluster barrier", site); }

uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, unsigned source, Site site) {
  Thread* thread = machine.running;
  Warp& warp = *thread->warp;
  if (mask == ~0u) mask = warp.present;  // the last warp of a block need not be whole
  check_mask(warp, thread->lane, mask, site);
  WarpCall& call = warp.call[__builtin_ctz(mask)];
  if (!call.arrived) {
    for (const WarpCall& other : warp.call) {
      if (other.arrived && other.mask & mask) {
        fail(kLaunchFailure, "warp collective at %s with mask %08x overlaps the one at %s with mask %08x",
             text_of(site).c_str(), mask, text_of(other.site).c_str(), other.mask);
      }
    }
    call.op = op;
    call.mask = mask;
    call.site = site;
  } else if (call.op != op || call.mask != mask || !same(call.site, site)) {
    fail(kLaunchFailure, "divergent warp collective: lanes %08x are at %s (mask %08x), lane %u reached %s (mask %08x)",
         call.arrived, text_of(call.site).c_str(), call.mask, thread->lane, text_of(site).c_str(), mask);
  }
  char* clock = &call.clock[call.phase & 1];
  if (op == WarpOp::sync) release(clock);
  call.arrived |= 1u << thread->lane;
  warp.value[thread->lane] = value;
  warp.source[thread->lane] = source;
  if (call.arrived != mask) {
    wait_for("a warp collective", site);
  } else {
    call.arrived = 0;
    ++call.phase;
    finish(warp, call);
    for (unsigned i = 0; i < 32; ++i) {
      if (mask >> i & 1 && warp.lane[i] != thread) make_ready(warp.lane[i]);
    }
  }
  if (op == WarpOp::sync) acquire(clock);
  return thread->result;
}

}  // namespace cuda_emulator
