#pragma once
// Rows of logits at the speed of memory, on sm_90 and newer: persistent blocks, and a ring of tiles in shared memory
// that bulk copies fill and empty across the ends of rows. Of a block's warps eight do arithmetic, one loads, one
// stores, and one turns the sums of a row into its outputs while the others go on.
//
// A cluster of blocks shares a row, each block one segment; a tile stays in its slot from load to store, so that a
// gradient costs one read and one write. Rows must be 16-byte aligned, and no cap. Results are those of the kernels
// without a ring, to the bit: the same lanes add up the same columns.
//
// An Op says what is done with a row:
//   kSums, kWrites     whether there is a pass that adds up, a pass that writes a gradient
//   tokens()           the rows
//   loads(row)         whether the row is read; the same for every thread
//   skip(row)          by one thread, for a row that is not: its scalar outputs
//   out(row)           where its gradient goes
//   fetch(row, target_logit)    by one thread of each block, ahead of the sums: what finish() takes besides them
//   finish(row, inputs, target_logit, FinishedRow, writes)    by one thread of each block: the RowOutcome; `writes`
//                      the scalar outputs or not
#include "cuda/row.cuh"

namespace fapo::cuda {

struct RingShape {
  int slots = 0;
  int segments = 1;
  unsigned cluster = 1;
};

constexpr int kMaxSlots = 13;
constexpr unsigned kTileBytes = kTilePacks * 16;

// As many slots as one block has room for.
inline int most_slots(const Limits& limits) {
  constexpr int kTakenElsewhere = 5 << 10;  // by what else a block keeps in shared memory
  const int slots = (limits.shared_per_block - kTakenElsewhere) / static_cast<int>(kTileBytes);
  return slots < kMaxSlots ? slots : kMaxSlots;
}
constexpr unsigned kConsumers = kMaxRowThreads / kWarp;
constexpr unsigned kRingThreads = (kConsumers + 3) * kWarp;

// What a block tells the others of its cluster about its segment. The target's logit is that of block 0: it was read
// before the message was sent, so no block overwrites it too early.
struct RowMessage {
  float4 words[2];
};

struct RingShared {
  // Of a slot: filled by a copy, transformed in place, free again.
  Mbarrier full[kMaxSlots], transformed[kMaxSlots], empty[kMaxSlots];
  // Of a row, two in turn: summed up by all warps, told to this block by all others, decided, outcome taken by all
  // warps.
  Mbarrier summed[2], told[2], decided[2], taken[2];
  PartSum warp[2][kMaxSegments][kConsumers];
  RowMessage message[2][kMaxSegments];
  RowOutcome outcome[2];
};

// What every warp of a block agrees on without talking: the rows, and the tiles of each that are this block's.
template <typename T, typename Op>
class RingWalk {
 public:
  FAPO_DEVICE RingWalk(const Op& op, const RingShape& shape)
      : op_(op),
        shape_(shape),
        segments_((op.tokens().vocab + kPackSize<T> - 1) / kPackSize<T>, shape.segments),
        bytes_(op.tokens().vocab * static_cast<int64_t>(sizeof(T)) / 16 * 16) {}

  // fn(row, number among the loaded rows) for each row that is loaded; skip(row) for the others.
  template <typename Fn, typename Skip>
  FAPO_DEVICE void for_rows(const Fn& fn, const Skip& skip) const {
    unsigned loaded = 0;
    for (int64_t row = blockIdx.x / segments_.ranks; row < op_.tokens().rows; row += gridDim.x / segments_.ranks) {
      if (op_.loads(row)) {
        fn(row, loaded++);
      } else {
        skip(row);
      }
    }
  }
  template <typename Fn>
  FAPO_DEVICE void for_rows(const Fn& fn) const {
    for_rows(fn, [](int64_t) {});
  }

  // fn(first pack of the tile, segment, whether it ends the segment) for this block's tiles of a row.
  template <typename Fn>
  FAPO_DEVICE void for_tiles(const Fn& fn) const {
    for (int s = 0; s < segments_.count; ++s) {
      if (!segments_.mine(s)) continue;
      for (int64_t p = segments_.begin(s); p < segments_.end(s); p += kTilePacks) {
        fn(p, s, p + kTilePacks >= segments_.end(s));
      }
    }
  }

  // Whole packs of a tile, in bytes: what bulk copies move. The pack that the row ends in goes by elements.
  FAPO_DEVICE unsigned tile_bytes(int64_t first_pack) const {
    const int64_t rest = bytes_ - first_pack * 16;
    return rest >= kTileBytes ? kTileBytes : rest < 0 ? 0u : static_cast<unsigned>(rest);
  }

  FAPO_DEVICE const Segments& segments() const { return segments_; }
  FAPO_DEVICE const RingShape& shape() const { return shape_; }

 private:
  const Op& op_;
  const RingShape& shape_;
  Segments segments_;
  int64_t bytes_;
};

// The slot of the n-th tile of a block, and how often it was in use before.
class Slot {
 public:
  FAPO_DEVICE explicit Slot(int slots) : slots_(slots) {}
  FAPO_DEVICE int index() const { return index_; }
  FAPO_DEVICE unsigned parity() const { return parity_; }
  FAPO_DEVICE void next() {
    if (++index_ == slots_) index_ = 0, parity_ ^= 1u;
  }

 private:
  int slots_, index_ = 0;
  unsigned parity_ = 0;
};

FAPO_DEVICE unsigned row_slot(unsigned loaded) { return loaded & 1u; }
FAPO_DEVICE unsigned row_parity(unsigned loaded) { return loaded >> 1 & 1u; }

template <typename T, typename Op>
FAPO_DEVICE void ring_load(const Op& op, const RingWalk<T, Op>& walk, RingShared& shared, char* ring) {
  Slot slot(walk.shape().slots);
  walk.for_rows([&](int64_t row, unsigned) {
    const char* logits = reinterpret_cast<const char*>(op.tokens().template row<T>(row));
    walk.for_tiles([&](int64_t p, int, bool) {
      const int at = slot.index();
      mbarrier_wait(shared.empty[at], slot.parity() ^ 1u);  // the first time round it is
      const unsigned bytes = walk.tile_bytes(p);
      if (bytes > 0) {
        mbarrier_arrive_expect(shared.full[at], bytes);
        bulk_load(ring + static_cast<size_t>(at) * kTileBytes, logits + p * 16, bytes, shared.full[at]);
      } else {
        mbarrier_arrive(shared.full[at]);
      }
      slot.next();
    });
  });
}

template <typename T, typename Op>
FAPO_DEVICE void ring_store(const Op& op, const RingWalk<T, Op>& walk, RingShared& shared, const char* ring) {
  Slot slot(walk.shape().slots), stored(walk.shape().slots);
  unsigned pending = 0;
  const auto release = [&](unsigned left) {
    for (; pending > left; --pending) {
      mbarrier_arrive(shared.empty[stored.index()]);
      stored.next();
    }
  };
  walk.for_rows([&](int64_t row, unsigned) {
    char* out = reinterpret_cast<char*>(op.out(row));
    walk.for_tiles([&](int64_t p, int, bool) {
      mbarrier_wait(shared.transformed[slot.index()], slot.parity());
      const unsigned bytes = walk.tile_bytes(p);
      if (bytes > 0) bulk_store(out + p * 16, ring + static_cast<size_t>(slot.index()) * kTileBytes, bytes);
      bulk_commit();
      ++pending;
      slot.next();
      bulk_wait_read<1>();
      release(1);
    });
    // The next row may need every slot before it stores its first tile.
    bulk_wait_read<0>();
    release(0);
  });
  bulk_wait<0>();
}

// The numbers of a row from the sums of its warps, by one warp, and what follows from them.
template <typename T, typename Op>
FAPO_DEVICE void ring_finish(const Op& op, const RingWalk<T, Op>& walk, RingShared& shared) {
  const Segments& segments = walk.segments();
  const LogitScale& scale = op.tokens().scale;
  const unsigned count = static_cast<unsigned>(segments.count);
  walk.for_rows([&](int64_t row, unsigned loaded) {
    const unsigned r = row_slot(loaded), parity = row_parity(loaded);
    typename Op::Inputs inputs{};
    float target_logit = 0.0f;
    if (lane_index() == 0) inputs = op.fetch(row, target_logit);
    FinishedRow finished_row{};
    if constexpr (Op::kSums) {
      mbarrier_wait(shared.summed[r], parity);
      PartSum mine{};  // in lane s, of segment s
      for (int s = 0; s < segments.count; ++s) {
        if (!segments.mine(s)) continue;
        const PartSum sum = merge_parts(shared.warp[r][s][lane_index() % kConsumers], kConsumers, scale);
        if (lane_index() == static_cast<unsigned>(s)) mine = sum;
      }
      target_logit = __shfl_sync(kAllLanes, target_logit, 0);
      if (segments.ranks > 1) {
        // One segment per block: lane t tells block t about this block's.
        const unsigned from = segments.rank;
        mine.reference = __shfl_sync(kAllLanes, mine.reference, static_cast<int>(from));
        mine.sum = __shfl_sync(kAllLanes, mine.sum, static_cast<int>(from));
        mine.weighted = __shfl_sync(kAllLanes, mine.weighted, static_cast<int>(from));
        RowMessage message;
        const float words[8] = {mine.reference, target_logit};
        memcpy(static_cast<void*>(&message), words, 8);
        memcpy(reinterpret_cast<char*>(&message) + 8, &mine.sum, 8);
        memcpy(reinterpret_cast<char*>(&message) + 16, &mine.weighted, 8);
        memset(reinterpret_cast<char*>(&message) + 24, 0, 8);
        if (lane_index() == 0) mbarrier_arrive_expect(shared.told[r], segments.ranks * sizeof(RowMessage));
        if (lane_index() < segments.ranks) {
          for (int w = 0; w < 2; ++w) {
            store_async(&shared.message[r][from].words[w], message.words[w], shared.told[r], lane_index());
          }
        }
        mbarrier_wait(shared.told[r], parity);
        const char* told = reinterpret_cast<const char*>(&shared.message[r][lane_index() % segments.ranks]);
        memcpy(&mine.reference, told, 4);
        memcpy(&mine.sum, told + 8, 8);
        memcpy(&mine.weighted, told + 16, 8);
        memcpy(&target_logit, reinterpret_cast<const char*>(&shared.message[r][0]) + 4, 4);
      }
      finished_row = finished(merge_parts(mine, count, scale), scale, target_logit);
    }
    if (lane_index() == 0) {
      const RowOutcome outcome = op.finish(row, inputs, target_logit, finished_row, segments.rank == 0);
      if constexpr (Op::kWrites) {
        mbarrier_wait(shared.taken[r], parity ^ 1u);  // the outcome of two rows ago
        shared.outcome[r] = outcome;
      }
    }
    __syncwarp();
    if (lane_index() == 0) mbarrier_arrive(shared.decided[r]);
  });
}

template <typename T, typename Op, bool kEntropy>
FAPO_DEVICE void ring_consume(const Op& op, const RingWalk<T, Op>& walk, RingShared& shared, char* ring) {
  Slot summing(walk.shape().slots), transforming(walk.shape().slots);
  const int64_t packs = walk.segments().packs;
  const float scale = static_cast<float>(kLog2E / op.tokens().scale.temperature);
  const auto tile_of = [&](const Slot& slot) {
    return reinterpret_cast<uint4*>(ring + static_cast<size_t>(slot.index()) * kTileBytes);
  };

  walk.for_rows(
      [&](int64_t row, unsigned loaded) {
        const unsigned r = row_slot(loaded), parity = row_parity(loaded);
        const RowReader<T> reader(op.tokens().template row<T>(row), op.tokens().vocab);
        if constexpr (Op::kSums) {
          // The sums of two rows ago have been read.
          mbarrier_wait(shared.decided[r], parity ^ 1u);
          LaneSum<kEntropy> mine;
          walk.for_tiles([&](int64_t first, int s, bool ends) {
            mbarrier_wait(shared.full[summing.index()], summing.parity());
            const uint4* tile = tile_of(summing);
            const unsigned whole = walk.tile_bytes(first) / 16;
            uint4 raw[kBatch];
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
              const unsigned at = threadIdx.x + static_cast<unsigned>(j) * kMaxRowThreads;
              raw[j] = at < whole ? tile[at] : first + at < packs ? reader.load(first + at) : RowReader<T>::nothing();
            }
            if constexpr (!Op::kWrites) {
              __syncwarp();  // all lanes have read the tile
              if (lane_index() == 0) mbarrier_arrive(shared.empty[summing.index()]);
            }
            summing.next();
            mine.template add<T>(raw, scale);
            if (!ends) return;
            const PartSum sum = warp_total(mine, scale, warp_max(mine.max));
            if (lane_index() == 0) shared.warp[r][s][warp_index()] = sum;
            mine = {};
          });
          if (lane_index() == 0) mbarrier_arrive(shared.summed[r]);
        }
        if constexpr (Op::kWrites) {
          mbarrier_wait(shared.decided[r], parity);
          const RowOutcome outcome = shared.outcome[r];
          __syncwarp();
          if (lane_index() == 0) mbarrier_arrive(shared.taken[r]);
          const RowWriter<T> writer(op.out(row), op.tokens().vocab);
          walk.for_tiles([&](int64_t first, int, bool) {
            if constexpr (!Op::kSums) mbarrier_wait(shared.full[transforming.index()], transforming.parity());
            uint4* tile = tile_of(transforming);
            const unsigned whole = walk.tile_bytes(first) / 16;
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
              const unsigned at = threadIdx.x + static_cast<unsigned>(j) * kMaxRowThreads;
              const int64_t p = first + at;
              if (p >= packs) continue;
              const uint4 raw = at < whole ? tile[at] : reader.load(p);
              const uint4 grad = outcome.zero ? make_uint4(0, 0, 0, 0) : gradient_of<T, false>(raw, p, outcome.factors);
              if (at < whole) {
                tile[at] = grad;
              } else {
                writer.store(p, grad);
              }
            }
            proxy_fence();  // what this thread wrote, before the copy that is issued once all have
            __syncwarp();
            if (lane_index() == 0) mbarrier_arrive(shared.transformed[transforming.index()]);
            transforming.next();
          });
        }
      },
      [&](int64_t row) {
        if (threadIdx.x == 0 && cluster_rank() == 0) op.skip(row);
        if constexpr (Op::kWrites) {
          const RowWriter<T> writer(op.out(row), op.tokens().vocab);
          // threadIdx.x of the consumers counts from 0.
          for (int64_t p = int64_t{cluster_rank()} * kMaxRowThreads + threadIdx.x; p < packs;
               p += int64_t{cluster_size()} * kMaxRowThreads) {
            writer.store(p, make_uint4(0, 0, 0, 0));
          }
        }
      });
}

template <typename T, typename Op, bool kEntropy>
__global__ void __launch_bounds__(kRingThreads, 2)
    row_ring_kernel(const __grid_constant__ Op op, const __grid_constant__ RingShape shape) {
  static_assert(Op::kSums || Op::kWrites);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  RingShared& shared = fapo::cuda::shared<RingShared>();
  char* ring = dynamic_shared<char>();
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < shape.slots; ++slot) {
      mbarrier_init(shared.full[slot], 1);
      mbarrier_init(shared.transformed[slot], kConsumers);
      mbarrier_init(shared.empty[slot], Op::kWrites ? 1 : kConsumers);
    }
    for (int r = 0; r < 2; ++r) {
      mbarrier_init(shared.summed[r], kConsumers);
      mbarrier_init(shared.told[r], 1);
      mbarrier_init(shared.decided[r], 1);
      mbarrier_init(shared.taken[r], kConsumers);
    }
    mbarrier_init_fence();
  }
  row_barrier(cluster_size());  // the barriers of all blocks are there

  const RingWalk<T, Op> walk(op, shape);
  const unsigned warp = warp_index();
  if (warp < kConsumers) {
    ring_consume<T, Op, kEntropy>(op, walk, shared, ring);
  } else if (warp == kConsumers) {
    if (lane_index() == 0) ring_load(op, walk, shared, ring);
  } else if (warp == kConsumers + 1) {
    if constexpr (Op::kWrites) {
      if (lane_index() == 0) ring_store(op, walk, shared, ring);
    }
  } else {
    ring_finish(op, walk, shared);
  }
  __syncwarp();
  row_barrier(cluster_size());  // no block leaves while another may still write to it
#endif
}

// Whether rows of this address and stride can go through a ring.
template <typename Void>
bool ring_aligned(const BasicMatrix<Void>& m, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.row_stride * element_bytes % 16 == 0;
}

// Launches as many clusters as run at once. False where there is no such kernel for this GPU.
template <typename T, typename Op, bool kEntropy>
bool launch_ring(Call& call, const Op& op, const RingShape& shape) {
  const auto kernel = row_ring_kernel<T, Op, kEntropy>;
  LaunchShape launch{shape.cluster, kRingThreads, shape.cluster, static_cast<size_t>(shape.slots) * kTileBytes};
  const int64_t clusters = call.max_active_clusters(reinterpret_cast<const void*>(kernel), launch);
  if (clusters < 1) return false;
  launch.blocks = (op.tokens().rows < clusters ? op.tokens().rows : clusters) * shape.cluster;
  call.launch(kernel, launch, op, shape);
  return true;
}

}  // namespace fapo::cuda
