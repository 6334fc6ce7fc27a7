// Shared memory: an arena per block, with red zones between the objects, that goes away with the block.
#include <sys/mman.h>

#include <new>

#include "machine.h"

namespace cuda_emulator {
namespace {

constexpr size_t kArenaBytes = 256 << 10;
constexpr size_t kRedZone = 128;
constexpr size_t kStaticLimit = 48 << 10;
// ThreadSanitizer sees fresh addresses for every block, so that it takes no block's accesses for those of another.
constexpr size_t kArenas = kFindsRaces ? 256 : 16;

char* next_arena() {
  static char* const begin = [] {
    void* memory = mmap(nullptr, kArenas * kArenaBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(memory);
  }();
  static size_t used = 0;
  if (used == kArenas) {
    used = 0;
    order_whole_device();
    release(&machine.start_clock);
  }
  return begin + kArenaBytes * used++;
}

// By words, and not memset, which ThreadSanitizer intercepts.
__attribute__((no_sanitize("address", "undefined"))) void fill(char* p, size_t bytes, uint32_t word) {
  auto* words = reinterpret_cast<volatile uint32_t*>(p);
  for (size_t i = 0; i < (bytes + 3) / 4; ++i) words[i] = word;
}

// 16 bytes past a multiple of 128 where no more than 16 is promised.
char* place(Block& block, const void* key, size_t bytes, bool dynamic) {
  constexpr unsigned kPieces = sizeof block.shared / sizeof block.shared[0];
  if (block.shared_pieces == kPieces) fail(kLaunchFailure, "more than %u objects in shared memory", kPieces);
  char* at = block.arena + block.arena_used + (dynamic ? 0 : 16);
  block.arena_used = (block.arena_used + 16 + bytes + kRedZone + 127) / 128 * 128;
  if (block.arena_used > kArenaBytes) fail(kLaunchFailure, "more shared memory than a block has");
  block.shared[block.shared_pieces++] = {key, at, bytes};
  allow(at, bytes);
  constexpr uint32_t kPoison[] = {0xffffffffu, 0x7f7f7f7fu, 0xfefefefeu};  // as float: NaN, huge, hugely negative
  fill(at, bytes, kPoison[machine.random ? draw(3) : 0]);
  return at;
}

const SharedPiece* piece_of(const Block& block, const void* p) {
  for (unsigned i = 0; i < block.shared_pieces; ++i) {
    const SharedPiece& piece = block.shared[i];
    if (p >= piece.at && p < piece.at + piece.bytes) return &piece;
  }
  return nullptr;
}

char* find_or_place(Block& block, const void* key, size_t bytes) {
  size_t total = bytes;
  for (unsigned i = 0; i < block.shared_pieces; ++i) {
    if (block.shared[i].key == key) return block.shared[i].at;
    if (block.shared[i].key) total += block.shared[i].bytes;
  }
  if (total > kStaticLimit) fail(kLaunchFailure, "%zu bytes of static shared memory, more than 48 KiB", total);
  // CUDA refuses such a launch; here the static part is known only now.
  if (total + machine.launch->dynamic_shared > machine.launch->shared_limit) {
    fail(kLaunchFailure, "%zu bytes of static and %zu of dynamic shared memory, more than the %zu of a block", total,
         machine.launch->dynamic_shared, machine.launch->shared_limit);
  }
  return place(block, key, bytes, false);
}

}  // namespace

void give_arena(Block& block, size_t dynamic_shared) {
  block.arena = next_arena();
  forbid(block.arena, kArenaBytes);
  block.arena_used = kRedZone;
  if (dynamic_shared) place(block, nullptr, dynamic_shared, true);
}

void retire_arena(Block& block) {
  fill(block.arena, block.arena_used, 0xffffffffu);
  forbid(block.arena, kArenaBytes);
}

bool in_shared_memory(const Block& block, const void* p, size_t bytes) {
  const SharedPiece* piece = piece_of(block, p);
  return piece && static_cast<const char*>(p) + bytes <= piece->at + piece->bytes;
}

void* static_shared(const void* key, size_t bytes) { return find_or_place(*machine.running->block, key, bytes); }

void* dynamic_shared() {
  const Block& block = *machine.running->block;
  if (!machine.launch->dynamic_shared) {
    fail(kLaunchFailure, "dynamic shared memory is used, and the launch asked for 0 bytes");
  }
  return block.shared[0].at;
}

void* map_shared_rank(const void* p, unsigned rank) {
  const Block& mine = *machine.running->block;
  if (rank >= machine.blocks.size()) {
    fail(kIllegalAddress, "map_shared_rank: rank %u in a cluster of %zu blocks", rank, machine.blocks.size());
  }
  Block& theirs = machine.blocks[rank];
  const SharedPiece* piece = piece_of(mine, p);
  if (!piece) fail(kIllegalAddress, "map_shared_rank: %p is not in this block's shared memory", p);
  if (&theirs != &mine) {
    if (machine.cluster.phase == 0) {
      fail(kIllegalAddress, "map_shared_rank before the first cluster barrier: block %u may not have started", rank);
    }
    if (theirs.exited == machine.threads_per_block) {
      fail(kIllegalAddress, "map_shared_rank: block %u of the cluster has exited", rank);
    }
  }
  char* at = piece->key ? find_or_place(theirs, piece->key, piece->bytes) : theirs.shared[0].at;
  return at + (static_cast<const char*>(p) - piece->at);
}

void order_whole_device() {
#ifdef CUDA_EMULATOR_TSAN
  Machine& m = machine;
  const auto join = [&](void* who) {
    if (!who) return;
    __tsan_switch_to_fiber(who, __tsan_switch_to_fiber_no_sync);
    __tsan_release(&m.end_clock);
    __tsan_switch_to_fiber(m.host.tsan(), __tsan_switch_to_fiber_no_sync);
  };
  join(m.copy_engine);
  for (const auto& thread : m.pool) join(thread->fiber.tsan());
  __tsan_acquire(&m.end_clock);
#endif
}

}  // namespace cuda_emulator
