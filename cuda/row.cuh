#pragma once
// Rows of logits on the GPU: how they are read and written, 16 bytes at a time whatever their alignment, and how a row
// becomes the numbers of a SoftmaxRow. Which thread adds up which column is a function of the vocabulary alone, so that
// a row's result depends neither on the other rows nor on the address of the row nor on how many blocks share it.
#include <cfloat>

#include "cuda/convert.cuh"
#include "cuda/device.h"
#include "cuda/reduce.cuh"
#include "native/math/softmax_row.h"
#include "native/ops/token_logprob.h"

namespace fapo::cuda {

constexpr unsigned kMaxRowThreads = 256;
constexpr int kMaxSegments = 8;
constexpr int kBatch = 4;                                // packs a thread has in flight
constexpr int64_t kTilePacks = kMaxRowThreads * kBatch;  // 16 KB

FAPO_HD int64_t tiles_of(int64_t packs) { return (packs + kTilePacks - 1) / kTilePacks; }

// How a row is spread: over `segments` stretches of tiles, each summed up by `threads` threads, on `cluster` blocks.
struct RowShape {
  unsigned threads = 0;
  int segments = 1;
  unsigned cluster = 1;  // divides segments

  // Enough threads to have kBatch packs each, up to a block's worth.
  static RowShape of(int64_t packs, int segments = 1, unsigned cluster = 1) {
    RowShape shape{kWarp, segments, cluster};
    while (shape.threads < kMaxRowThreads && packs > shape.threads * kBatch) shape.threads *= 2;
    return shape;
  }

  // Shorter rows have fewer threads, and no ring.
  bool fills_block() const { return threads == kMaxRowThreads; }
};

template <typename T>
inline int64_t packs_of(int64_t vocab) {
  return (vocab + kPackSize<T> - 1) / kPackSize<T>;
}

// Blocks for `rows` rows, within what grid.x holds; kernels loop over the rest.
inline int64_t row_blocks(int64_t rows, unsigned per_row) {
  constexpr int64_t kMost = int64_t{1} << 30;
  return (rows < kMost / per_row ? rows : kMost / per_row) * per_row;
}

template <typename T>
FAPO_DEVICE uint32_t neg_inf_word() {
  if constexpr (sizeof(T) == 4) return 0xff800000u;
  return std::is_same_v<T, bf16> ? 0xff80ff80u : 0xfc00fc00u;
}

// ---- reading

template <typename T>
class RowReader {
 public:
  FAPO_DEVICE RowReader(const T* row, int64_t vocab)
      : row_(row), vocab_(vocab), packs_((vocab + kPackSize<T> - 1) / kPackSize<T>) {
    offset_ = static_cast<unsigned>(reinterpret_cast<uintptr_t>(row) % 16);
    base_ = reinterpret_cast<const char*>(row) - offset_;
    // A pack of a misaligned row lies in two words of 16 bytes; the second must lie within the row, too.
    const int64_t bytes = vocab * static_cast<int64_t>(sizeof(T));
    whole_ = offset_ == 0 ? bytes / 16 : bytes < 16 ? 0 : (bytes + offset_) / 16 - 1;
  }

  FAPO_DEVICE int64_t packs() const { return packs_; }

  // Elements beyond the row are -Infinity, which weighs nothing.
  FAPO_DEVICE uint4 load(int64_t p) const {
    if (p >= whole_) return load_elements(p);
    return offset_ == 0 ? load_streaming(base_ + p * 16) : load_shifted(p);
  }

  // Packs p, p + step, ...: all at once, so that the loads overlap.
  FAPO_DEVICE void load(int64_t p, int64_t step, int64_t end, uint4 (&raw)[kBatch]) const {
    if (offset_ == 0 && p + (kBatch - 1) * step < (end < whole_ ? end : whole_)) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) raw[j] = load_streaming(base_ + (p + j * step) * 16);
      return;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) raw[j] = p + j * step < end ? load(p + j * step) : nothing();
  }

  FAPO_DEVICE static uint4 nothing() {
    const uint32_t w = neg_inf_word<T>();
    return make_uint4(w, w, w, w);
  }

 private:
  FAPO_DEVICE uint4 load_shifted(int64_t p) const {
    const auto* words = reinterpret_cast<const uint4*>(base_ + p * 16);
    const uint4 low = __ldg(words), high = __ldg(words + 1);  // cached: the next thread's first is this one's second
    uint32_t w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    if (offset_ & 8u) {
#pragma unroll
      for (int j = 0; j < 6; ++j) w[j] = w[j + 2];
    }
    if (offset_ & 4u) {
#pragma unroll
      for (int j = 0; j < 5; ++j) w[j] = w[j + 1];
    }
    const unsigned bits = (offset_ & 3u) * 8u;
    return make_uint4(__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
                      __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits));
  }

  // Not inlined into the loops: it runs for the last pack or two of a row.
  FAPO_DEVICE uint4 load_elements(int64_t p) const {
    uint32_t w[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t column = (p * 4 + j) * (4 / static_cast<int>(sizeof(T)));
      if constexpr (sizeof(T) == 4) {
        w[j] = column < vocab_ ? __float_as_uint(row_[column]) : neg_inf_word<T>();
      } else {
        const uint32_t fill = neg_inf_word<T>() & 0xffffu;
        const uint32_t low = column < vocab_ ? row_[column].bits : fill;
        const uint32_t high = column + 1 < vocab_ ? row_[column + 1].bits : fill;
        w[j] = high << 16 | low;
      }
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
  }

  const T* row_;
  const char* base_;
  int64_t vocab_;
  int64_t packs_;
  int64_t whole_;
  unsigned offset_;
};

// ---- writing

template <typename T>
class RowWriter {
 public:
  FAPO_DEVICE RowWriter(T* row, int64_t vocab)
      : row_(row), vocab_(vocab), whole_(reinterpret_cast<uintptr_t>(row) % 16 == 0 ? vocab / kPackSize<T> : 0) {}

  FAPO_DEVICE void store(int64_t p, const uint4& raw) const {
    if (p < whole_) return store_streaming(row_ + p * kPackSize<T>, raw);
    const uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < kPackSize<T>; ++j) {
      const int64_t column = p * kPackSize<T> + j;
      if (column >= vocab_) break;
      if constexpr (sizeof(T) == 4) {
        row_[column] = __uint_as_float(w[j]);
      } else {
        row_[column].bits = static_cast<uint16_t>(w[j / 2] >> (j % 2 * 16));
      }
    }
  }

  // By all threads of `parts` blocks, of which this is number `part`.
  FAPO_DEVICE void fill_zero(int64_t packs, unsigned part, unsigned parts) const {
    const int64_t step = int64_t{parts} * blockDim.x;
    for (int64_t p = int64_t{part} * blockDim.x + threadIdx.x; p < packs; p += step) {
      store(p, make_uint4(0, 0, 0, 0));
    }
  }

 private:
  T* row_;
  int64_t vocab_;
  int64_t whole_;
};

// ---- the chosen token

enum class Token : int32_t { counted, ignored, bad };

struct Target {
  Token kind;
  int64_t id;
};

FAPO_DEVICE Target target_of(const TokenLogits& tokens, int64_t row) {
  if (!tokens.counts(row)) return {Token::ignored, 0};
  const int64_t id = tokens.token_ids[row];
  return id < 0 || id >= tokens.vocab ? Target{Token::bad, 0} : Target{Token::counted, id};
}

// ---- exponents

// 2^w, |w| < 126, and 2^w - 1, the latter to full relative precision.
FAPO_DEVICE void exp2_and_expm1(float w, float& e, float& m) {
  const float whole = rintf(w);
  const int exponent = whole == whole ? static_cast<int>(whole) : 0;
  const float fraction = expm1f((w - whole) * static_cast<float>(kLn2));
  e = (fraction + 1.0f) * __int_as_float((exponent + 127) << 23);
  m = whole == 0.0f ? fraction : e - 1.0f;
}

// y of a logit under a cap, and the slope dz/dx * T = 4 p q E / (q + p E)^2 = 1 - tanh^2.
FAPO_DEVICE float capped_exponent(float x, const ExpMap& map, float& slope) {
  const float limit = map.cap_limit;
  const float inside = x < -limit ? -limit : x > limit ? limit : x;  // NaN stays
  float e, m;
  exp2_and_expm1((inside - map.reference) * map.cap_scale, e, m);
  const float two_pq = 2.0f * map.p * map.q;
  const float denominator = fmaf(map.p, e, map.q);
  slope = 2.0f * two_pq * e / (denominator * denominator);
  const float y = two_pq * m / denominator * map.scale;
  // A masked entry stays masked; an infinite one is as invalid as NaN.
  return x < -FLT_MAX ? -INFINITY : x > FLT_MAX ? NAN : y;
}

FAPO_DEVICE float bounded(float y) { return fmaxf(y, -1e4f); }  // 0 * -Infinity is NaN; 2^-10000 is 0 as well

// ---- summing up

// What a row is measured from under a cap, from its largest logit. A lone logit has a log-prob of exactly 0.
FAPO_DEVICE ExpMap capped_map(const TokenLogits& tokens, float top) {
  return ExpMap::from(tokens.scale, tokens.vocab == 1 ? top : well_placed(tokens.scale, top));
}

// What one thread has added up: 2^y and 2^y * y, y measured from the largest logit so far. Sums of float32 are of 8
// logits, of 4 such sums, and then of float64, so that roundings that all go one way stay far below 1e-6.
template <bool kEntropy>
struct LaneSum {
  float max = -FLT_MAX;  // not -Infinity: a masked logit is measured from it
  double sum = 0.0;
  double weighted = 0.0;

  template <typename T>
  FAPO_DEVICE void add(const uint4 (&raw)[kBatch], float scale) {
    const float top = max_of<T>(raw);
    if (!(top <= max)) raise(max_nan(top, max), scale);
    float part[kBatch], part_weighted[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      float x[kPackSize<T>];
      unpack<T>(raw[j], x);
      part[j] = part_weighted[j] = 0.0f;
#pragma unroll
      for (int i = 0; i < kPackSize<T>; ++i) {
        const float y = (x[i] - max) * scale;
        const float e = exp2_approx(y);
        part[j] += e;
        if constexpr (kEntropy) part_weighted[j] = fmaf(e, bounded(y), part_weighted[j]);
      }
    }
    sum += (part[0] + part[1]) + (part[2] + part[3]);
    if constexpr (kEntropy) {
      weighted += (part_weighted[0] + part_weighted[1]) + (part_weighted[2] + part_weighted[3]);
    }
  }

  // Under a cap: measured from the reference of the map, which is known beforehand.
  template <typename T>
  FAPO_DEVICE void add_capped(const uint4 (&raw)[kBatch], const ExpMap& map) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      float x[kPackSize<T>], part = 0.0f, part_weighted = 0.0f, slope;
      unpack<T>(raw[j], x);
#pragma unroll
      for (int i = 0; i < kPackSize<T>; ++i) {
        const float y = capped_exponent(x[i], map, slope);
        const float e = exp2_approx(y);
        part += e;
        if constexpr (kEntropy) part_weighted = fmaf(e, bounded(y), part_weighted);
      }
      sum += part;
      if constexpr (kEntropy) weighted += part_weighted;
    }
  }

  // The same sums measured from a higher logit.
  FAPO_DEVICE void raise(float higher, float scale) {
    const float distance = (max - higher) * scale;
    const float factor = exp2_approx(distance);
    if constexpr (kEntropy) {
      weighted = static_cast<double>(factor) * (weighted + static_cast<double>(bounded(distance)) * sum);
    }
    sum *= static_cast<double>(factor);
    max = higher;
  }
};

// A part of a row: sums of 2^y and 2^y * y, y measured from `reference`, the largest logit of the part.
struct PartSum {
  float reference;
  double sum, weighted;
};

// The sums of a warp's lanes: under a cap measured from where they are, otherwise from the largest of their maxima.
template <bool kEntropy>
FAPO_DEVICE PartSum warp_total(const LaneSum<kEntropy>& mine, float reference) {
  return {reference, warp_sum(mine.sum), kEntropy ? warp_sum(mine.weighted) : 0.0};
}
template <bool kEntropy>
FAPO_DEVICE PartSum warp_total(LaneSum<kEntropy> mine, float scale, float top) {
  mine.raise(top, scale);
  return warp_total(mine, top);
}

// Shared memory of the blocks that work on a row.
struct RowShared {
  PartSum warp[kMaxSegments * kMaxRowThreads / kWarp];  // [segment][warp] of this block's segments
  PartSum segment[kMaxSegments];
  float max[kMaxRowThreads / kWarp];  // of each warp, over its block's segments
  ExpMap map;
};

// Which packs a block has: segments rank, rank + cluster, ...
struct Segments {
  int64_t packs, tiles;
  int count;
  unsigned rank, ranks;

  FAPO_DEVICE Segments(int64_t packs_of_row, int segments)
      : packs(packs_of_row),
        tiles(tiles_of(packs_of_row)),
        count(segments),
        rank(cluster_rank()),
        ranks(cluster_size()) {}

  // Whole tiles, so that a batch of a thread is of one tile.
  FAPO_DEVICE int64_t begin(int s) const { return tiles * s / count * kTilePacks; }
  FAPO_DEVICE int64_t end(int s) const {
    const int64_t stop = tiles * (s + 1) / count * kTilePacks;
    return stop < packs ? stop : packs;
  }
  FAPO_DEVICE bool mine(int s) const { return static_cast<unsigned>(s) % ranks == rank; }

  // fn(raw packs, p, step, end) for every batch of this block's packs, in order. load(p, step, end, raw) gets them.
  template <typename Load, typename Fn>
  FAPO_DEVICE void for_batches_of(int s, const Load& load, const Fn& fn) const {
    const int64_t step = blockDim.x, stop = end(s);
    for (int64_t p = begin(s) + threadIdx.x; p < stop; p += kBatch * step) {
      uint4 raw[kBatch];
      load(p, step, stop, raw);
      fn(raw, p, step, stop);
    }
  }
};

// All threads of all blocks that work on the row, until all have come.
FAPO_DEVICE void row_barrier(unsigned ranks) {
  if (ranks == 1) {
    __syncthreads();
  } else {
    __syncwarp();  // all lanes of a warp arrive as one
    cluster_arrive();
    cluster_wait();
  }
}

// The largest logit of the row, in every thread; NaN if there is one. A pass over the row of its own: under a cap the
// exponents cannot be rescaled as the maximum grows.
template <typename T, typename Load>
FAPO_DEVICE float row_max(const Segments& segments, const Load& load, RowShared& shared) {
  float top = -INFINITY;
  for (int s = 0; s < segments.count; ++s) {
    if (!segments.mine(s)) continue;
    segments.for_batches_of(
        s, load, [&](const uint4(&raw)[kBatch], int64_t, int64_t, int64_t) { top = max_nan(top, max_of<T>(raw)); });
  }
  top = warp_max(top);
  if (lane_index() == 0) shared.max[warp_index()] = top;
  row_barrier(segments.ranks);
  top = -INFINITY;
  for (unsigned rank = 0; rank < segments.ranks; ++rank) {
    const RowShared& theirs = rank == segments.rank ? shared : *map_shared_rank(&shared, rank);
    for (unsigned w = 0; w < warp_count(); ++w) top = max_nan(top, theirs.max[w]);
  }
  row_barrier(segments.ranks);
  return top;
}

// Adds up parts that lanes 0 .. count - 1 of the calling warp hold, count <= 32; every lane gets the whole.
FAPO_DEVICE_NOINLINE PartSum merge_parts(PartSum mine, unsigned count, const LogitScale& scale) {
  const bool takes_part = lane_index() < count;
  const float reference = warp_max(takes_part ? mine.reference : -FLT_MAX);
  ExpSum sum;
  if (takes_part) sum = ExpSum{mine.sum, mine.weighted}.rebased(scale.log2_ratio(reference, mine.reference));
  return {reference, warp_sum(sum.sum), warp_sum(sum.weighted)};
}

// Sums up this block's segments into shared.segment. `map` is used under a cap alone; without, its scale is. After the
// next barrier of the row's blocks every segment is known.
template <typename T, bool kEntropy, bool kCapped, typename Load>
FAPO_DEVICE void sum_segments(const Segments& segments, const Load& load, const ExpMap& map, const LogitScale& scale,
                              RowShared& shared) {
  for (int s = 0; s < segments.count; ++s) {
    if (!segments.mine(s)) continue;
    LaneSum<kEntropy> mine;
    segments.for_batches_of(s, load, [&](const uint4(&raw)[kBatch], int64_t, int64_t, int64_t) {
      if constexpr (kCapped) {
        mine.template add_capped<T>(raw, map);
      } else {
        mine.template add<T>(raw, map.scale);
      }
    });
    const PartSum sum = kCapped ? warp_total(mine, map.reference) : warp_total(mine, map.scale, warp_max(mine.max));
    if (lane_index() == 0) shared.warp[static_cast<unsigned>(s) * warp_count() + warp_index()] = sum;
  }
  __syncthreads();
  if (warp_index() != 0) return;
  for (int s = 0; s < segments.count; ++s) {
    if (!segments.mine(s)) continue;
    const PartSum sum = merge_parts(shared.warp[static_cast<unsigned>(s) * warp_count() + lane_index() % warp_count()],
                                    warp_count(), scale);
    if (lane_index() == 0) shared.segment[s] = sum;
  }
}

struct FinishedRow {
  SoftmaxRow row;
  float reference;
};

// A row from the sum of all its segments.
FAPO_DEVICE FinishedRow finished(const PartSum& total, const LogitScale& scale, float target_logit) {
  // Nothing but -Infinity has no softmax; NaN and +Infinity have made the sum NaN.
  if (!(total.sum > 0.0)) return {{{NAN, NAN}, NAN, NAN}, total.reference};
  return {{{total.sum, total.weighted}, scale.z(total.reference), scale.log2_ratio(target_logit, total.reference)},
          total.reference};
}

// By one warp, after a row_barrier.
FAPO_DEVICE FinishedRow finish_row(const Segments& segments, RowShared& shared, const LogitScale& scale,
                                   float target_logit) {
  const unsigned s = lane_index() % static_cast<unsigned>(segments.count), rank = s % segments.ranks;
  const PartSum mine = rank == segments.rank ? shared.segment[s] : map_shared_rank(&shared, rank)->segment[s];
  return finished(merge_parts(mine, static_cast<unsigned>(segments.count), scale), scale, target_logit);
}

// ---- the gradient of a row

struct RowFactors {
  ExpMap map;
  float constant, linear;  // gradient = slope * 2^y * (constant + linear * y)
  float target_value;      // at the target, rounded once more to the dtype
  int64_t target;

  // log2_sum: of 2^y over the row, y measured from map.reference.
  FAPO_DEVICE static RowFactors from(const ExpMap& map, const RowPull& pull, double log2_sum, double logprob,
                                     double entropy, const LogitScale& scale, int64_t target, float target_logit) {
    RowFactors f{map, NAN, NAN, NAN, target};
    const bool valid =
        log2_sum == log2_sum && logprob == logprob && pull.logprob == pull.logprob && pull.entropy == pull.entropy;
    if (!valid) return f;
    if (pull.entropy == 0.0) entropy = 0.0;
    const RowGradient g = RowGradient::from(pull, log2_sum, entropy, scale.temperature);
    f.constant = as_factor(g.constant);
    f.linear = as_factor(g.linear);
    // A masked logit gets no gradient, also where it is the target.
    const double slope = target_logit == -INFINITY ? 0.0 : scale.slope(target_logit);
    const double value = RowGradient::at_target(pull, logprob, entropy, scale.temperature);
    f.target_value = static_cast<float>(slope == 0.0 ? 0.0 : value * slope);
    return f;
  }
};

struct RowOutcome {
  bool zero;  // no gradient at all
  RowFactors factors;
};

// One pack of logits becomes one pack of gradient.
template <typename T, bool kCapped>
FAPO_DEVICE uint4 gradient_of(const uint4& raw, int64_t p, const RowFactors& f) {
  float x[kPackSize<T>];
  unpack<T>(raw, x);
#pragma unroll
  for (int i = 0; i < kPackSize<T>; ++i) {
    float y, slope = 1.0f;
    if constexpr (kCapped) {
      y = capped_exponent(x[i], f.map, slope);
    } else {
      y = (x[i] - f.map.reference) * f.map.scale;
    }
    const float value = exp2_approx(y) * fmaf(f.linear, bounded(y), f.constant);
    x[i] = kCapped ? value * slope : value;
  }
  if (f.target / kPackSize<T> == p) {
    const int at = static_cast<int>(f.target % kPackSize<T>);
#pragma unroll
    for (int i = 0; i < kPackSize<T>; ++i) x[i] = i == at ? f.target_value : x[i];
  }
  return pack<T>(x);
}

}  // namespace fapo::cuda
