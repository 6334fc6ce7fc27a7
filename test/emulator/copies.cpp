// mbarriers, and copies that a copy engine makes: for ThreadSanitizer a thread of its own, which sees what others wrote
// only where the rules of CUDA say so. Each copy is issued, reads, and writes, at moments that the seed draws.
#include "machine.h"

namespace cuda_emulator {
namespace {

MbarrierState& state_of(uint64_t* barrier, const char* what, Site site) {
  for (MbarrierState& state : machine.mbarriers) {
    if (state.at == barrier && *barrier == reinterpret_cast<uintptr_t>(barrier)) return state;
  }
  fail(kLaunchFailure, "%s at %s: the mbarrier has not been initialised, or was overwritten", what,
       text_of(site).c_str());
}

void settle(MbarrierState& state) {
  if (state.pending || state.bytes) return;
  state.phase ^= 1;
  state.pending = state.arrivals;
  for (Thread* thread = state.waiting; thread; thread = thread->next_waiting) make_ready(thread);
  state.waiting = nullptr;
}

// Runs `work` as the copy engine.
template <typename Work>
void as_copy_engine(const Work& work) {
#ifdef CUDA_EMULATOR_TSAN
  Machine& m = machine;
  if (!m.copy_engine) m.copy_engine = __tsan_create_fiber(0);
  void* self = m.running ? m.running->fiber.tsan() : m.host.tsan();
  __tsan_switch_to_fiber(m.copy_engine, __tsan_switch_to_fiber_no_sync);
  work();
  __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
#else
  work();
#endif
}

// Whether copies of groups before `group` of this thread are still to be read / written.
bool outstanding(const Thread& thread, unsigned group, bool reads_only) {
  for (const Copy& copy : machine.copies) {
    if (!copy.mbarrier && copy.issuer == &thread && copy.group < group && !(reads_only && copy.read)) return true;
  }
  return false;
}

void wake_issuer(Thread& thread) {
  if (!thread.awaited_group) return;
  if (outstanding(thread, thread.awaited_group, thread.awaits_reads_only)) return;
  thread.awaited_group = 0;
  make_ready(&thread);
}

void await_groups(unsigned pending, bool reads_only, Site site) {
  Thread& thread = *machine.running;
  // open_group groups have been committed; copies outside any group are not waited for.
  const unsigned group = thread.open_group > pending ? thread.open_group - pending : 0;
  if (outstanding(thread, group, reads_only)) {
    thread.awaited_group = group;
    thread.awaits_reads_only = reads_only;
    wait_for("bulk stores", site);
  }
  acquire(reads_only ? &thread.copies_read : &thread.copies_done);
}

void check_bulk(const void* shared, const void* global, unsigned bytes, Site site) {
  if (!machine.launch->has_clusters) {
    fail(kLaunchFailure, "bulk copy at %s: the device has compute capability 8", text_of(site).c_str());
  }
  if (bytes % 16) fail(kLaunchFailure, "bulk copy at %s of %u bytes, no multiple of 16", text_of(site).c_str(), bytes);
  check_aligned(shared, 16, site);
  check_aligned(global, 16, site);
  if (!in_shared_memory(*machine.running->block, shared, bytes)) {
    fail(kIllegalAddress, "bulk copy at %s: %u bytes of shared memory out of bounds", text_of(site).c_str(), bytes);
  }
  if (!is_device_memory(global, bytes, machine.launch->device)) {
    fail(kIllegalAddress, "bulk copy at %s: %u bytes of global memory out of bounds", text_of(site).c_str(), bytes);
  }
}

void issue(Copy copy) {
  if (machine.copies.size() == machine.copies.capacity()) fail(kLaunchFailure, "too many copies on the way");
  copy.issuer = machine.running;
  copy.group = machine.running->open_group;
  // What completes on an mbarrier follows its issuer. Other stores see what was fenced for the copy engine.
  char issued = 0;
  if (copy.mbarrier) release(&issued);
  as_copy_engine([&] { acquire(copy.mbarrier ? &issued : &machine.proxy_clock); });
  machine.copies.push_back(copy);
}

void move_bytes(char* to, const char* from, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) to[i] = from[i];
}

void forget(size_t i) {
  machine.copies[i] = machine.copies.back();
  machine.copies.pop_back();
}

}  // namespace

void advance_copy(size_t i) {
  Copy copy = machine.copies[i];
  if (!copy.mbarrier && copy.read) {  // a store that has been read, and is now done
    as_copy_engine([&] { release(&copy.issuer->copies_done); });
    forget(i);
    wake_issuer(*copy.issuer);
    return;
  }
  as_copy_engine([&] {
    if (copy.from) note_read(copy.from, copy.bytes);
    if (!copy.mbarrier) release(&copy.issuer->copies_read);
    note_write(copy.to, copy.bytes);
    move_bytes(copy.to, copy.from ? copy.from : copy.value, copy.bytes);
    if (copy.mbarrier) release(copy.mbarrier);
  });
  if (!copy.mbarrier) {
    machine.copies[i].read = true;
    wake_issuer(*copy.issuer);
    return;
  }
  forget(i);
  for (MbarrierState& state : machine.mbarriers) {
    if (state.at != copy.mbarrier) continue;
    state.bytes -= copy.bytes;
    settle(state);
  }
}

void check_no_copies_of(const Block& block) {
  for (const Copy& copy : machine.copies) {
    const bool reads = copy.from && !copy.read && in_shared_memory(block, copy.from, copy.bytes);
    if (reads || in_shared_memory(block, copy.to, copy.bytes)) {
      fail(kIllegalAddress, "a block exits while the copy issued at %s still %s its shared memory",
           text_of(copy.site).c_str(), reads ? "reads" : "writes");
    }
  }
}

void mbarrier_init(uint64_t* barrier, unsigned arrivals, Site site) {
  check_aligned(barrier, 8, site);
  if (!in_shared_memory(*machine.running->block, barrier, 8)) {
    fail(kIllegalAddress, "mbarrier_init at %s: not in shared memory", text_of(site).c_str());
  }
  if (arrivals == 0 || arrivals >= 1u << 20) {
    fail(kLaunchFailure, "mbarrier_init at %s with %u arrivals", text_of(site).c_str(), arrivals);
  }
  note_write(barrier, sizeof *barrier);
  *barrier = reinterpret_cast<uintptr_t>(barrier);
  MbarrierState state;
  state.at = barrier;
  state.arrivals = state.pending = arrivals;
  state.initialiser = machine.running;
  for (MbarrierState& known : machine.mbarriers) {
    if (known.at != barrier) continue;
    known = state;
    return;
  }
  if (machine.mbarriers.size() == machine.mbarriers.capacity()) fail(kLaunchFailure, "too many mbarriers");
  machine.mbarriers.push_back(state);
}

void mbarrier_init_fence() {
  for (MbarrierState& state : machine.mbarriers) state.fenced |= state.initialiser == machine.running;
}

void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes, Site site) {
  note_read(barrier, sizeof *barrier);
  MbarrierState& state = state_of(barrier, "mbarrier_arrive", site);
  if (!state.pending) {
    fail(kLaunchFailure, "mbarrier_arrive at %s: more arrivals than the %u it counts", text_of(site).c_str(),
         state.arrivals);
  }
  constexpr int64_t kMostBytes = (1 << 20) - 1;
  state.bytes += expected_bytes;
  if (state.bytes > kMostBytes) fail(kLaunchFailure, "mbarrier at %s: more bytes than 2^20 - 1", text_of(site).c_str());
  release(barrier);
  --state.pending;
  settle(state);
}

void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site) {
  note_read(barrier, sizeof *barrier);
  MbarrierState& state = state_of(barrier, "mbarrier_wait", site);
  if (state.phase == (parity & 1)) {
    machine.running->next_waiting = state.waiting;
    state.waiting = machine.running;
    wait_for("an mbarrier", site);
  }
  acquire(barrier);
}

void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier, Site site) {
  check_bulk(shared, global, bytes, site);
  if (!state_of(barrier, "bulk_load", site).fenced) {
    fail(kLaunchFailure, "bulk_load at %s: its mbarrier was initialised without mbarrier_init_fence",
         text_of(site).c_str());
  }
  Copy copy;
  copy.to = static_cast<char*>(shared);
  copy.from = static_cast<const char*>(global);
  copy.bytes = bytes;
  copy.mbarrier = barrier;
  copy.site = site;
  issue(copy);
}

void bulk_store(void* global, const void* shared, unsigned bytes, Site site) {
  check_bulk(shared, global, bytes, site);
  Copy copy;
  copy.to = static_cast<char*>(global);
  copy.from = static_cast<const char*>(shared);
  copy.bytes = bytes;
  copy.site = site;
  issue(copy);
}

void bulk_commit() { ++machine.running->open_group; }
void bulk_wait_read(unsigned pending, Site site) { await_groups(pending, true, site); }
void bulk_wait(unsigned pending, Site site) { await_groups(pending, false, site); }
void proxy_fence() { release(&machine.proxy_clock); }

void store_async(void* to, const void* bytes16, uint64_t* barrier, unsigned rank, Site site) {
  check_aligned(to, 16, site);
  Copy copy;
  copy.to = static_cast<char*>(map_shared_rank(to, rank));
  copy.bytes = sizeof copy.value;
  copy.mbarrier = static_cast<uint64_t*>(map_shared_rank(barrier, rank));
  copy.site = site;
  move_bytes(copy.value, static_cast<const char*>(bytes16), copy.bytes);
  if (!in_shared_memory(machine.blocks[rank], copy.to, copy.bytes)) {
    fail(kIllegalAddress, "store_async at %s out of bounds", text_of(site).c_str());
  }
  if (!state_of(copy.mbarrier, "store_async", site).fenced) {
    fail(kLaunchFailure, "store_async at %s: its mbarrier was initialised without mbarrier_init_fence",
         text_of(site).c_str());
  }
  issue(copy);
}

}  // namespace cuda_emulator
