#pragma once
// One row of logits on the CPU: forward to the numbers of a SoftmaxRow, and back to the gradient of the row. The
// traversal is here, the arithmetic in math/softmax_row.h, the loops in row_kernels.h.
#include <algorithm>
#include <cmath>
#include <span>

#include "native/half.h"
#include "native/math/softmax_row.h"
#include "native/simd/row_kernels.h"

namespace fapo {

// The parts in which a row is computed, each by itself, so that threads can share it. They depend on the length of the
// row alone: its sums come out the same whoever computes which part.
struct RowParts {
  static constexpr int64_t kUnit = 2304;   // a multiple of what the row kernels sum up in float32, on every machine
  static constexpr int64_t kShortest = 8;  // units: a few microseconds' work
  static constexpr int64_t kMost = 32;

  int64_t vocab;
  int64_t length;
  int64_t count;

  explicit RowParts(int64_t vocab) : vocab(vocab) {
    const int64_t units = (vocab + kUnit - 1) / kUnit;
    length = kUnit * std::max(kShortest, (units + kMost - 1) / kMost);
    count = (vocab + length - 1) / length;
  }

  int64_t begin(int64_t part) const { return part * length; }
  int64_t end(int64_t part) const { return std::min(begin(part) + length, vocab); }
  int64_t size(int64_t part) const { return end(part) - begin(part); }
};

// A row is measured from the target's own logit, which needs no search for the maximum: the first pass over the row is
// the only one. Where some logit of a part lies far above (an unlikely token), the rest of the part is measured from
// its maximum. Functions that take a part may be called for different parts at a time, the others before or after all
// of those.
template <typename T>
class CpuSoftmaxRow {
 public:
  CpuSoftmaxRow(const LogitScale& scale, const RowParts& parts) : scale_(scale), parts_(parts) {}

  double logprob() const { return logprob_; }
  double lse() const { return lse_; }
  double entropy() const { return entropy_; }  // after finish() with entropy, or restore()

  // ---- forward: start, measure every part, finish

  void start(const T* x, int64_t target) {
    target_ = target;
    target_logit_ = to_float(x[target]);
    reference_ = well_placed(scale_, static_cast<float>(target_logit_));
    origin_ = origin_at(reference_);
  }

  void measure(const T* x, int64_t part, bool entropy) {
    const auto& sum_exp = kernels_.sum_exp[scale_.capped()][entropy];
    state_[part] = measured(x, part, sum_exp[1], sum_exp[0]);
  }

  // As measure, and leaves 2^y in place of the logits, for scale_in_place. float32 without a cap alone.
  void measure_in_place(T* x, int64_t part) {
    state_[part] = measured(x, part, kernels_.sum_exp_in_place[1], kernels_.sum_exp_in_place[0]);
  }

  void finish(bool entropy) {
    const SoftmaxRow row = merged();
    log2_sum_ = row.log2_sum();
    logprob_ = row.logprob();
    lse_ = row.lse();
    if (entropy) entropy_ = row.entropy();
  }

  // What the forward pass found, from the outputs that were kept of it.
  void restore(const T* x, int64_t target, double logprob, double lse, double entropy) {
    target_ = target;
    target_logit_ = to_float(x[target]);
    logprob_ = logprob;
    lse_ = lse;
    entropy_ = entropy;
    double reference = restored_reference(scale_, target_logit_, logprob, lse);
    if (reference != reference) reference = kernels_.max(x, parts_.vocab);
    reference_ = well_placed(scale_, static_cast<float>(reference));
    for (Part& p : parts()) p = {{}, 0, {reference_, reference_}};
    log2_sum_ = restored_log2_sum(scale_, reference_, target_logit_, logprob, lse);
  }

  // ---- backward, after finish or restore: pull, then the gradient of every part

  void pull(const RowPull& pull) {
    pull_ = pull;
    invalid_ = log2_sum_ != log2_sum_ || logprob_ != logprob_ || pull.logprob != pull.logprob ||
               pull.entropy != pull.entropy || (pull.entropy != 0.0 && entropy_ != entropy_);
    gradient_ = gradient_from(reference_);
  }
  // Whether there is a gradient at all.
  bool pulled() const { return !pull_.none(); }

  // out = gradient, of parts [first, last); out may be x. memory.ahead is as long as the row.
  void gradient(T* out, const T* x, int64_t first, int64_t last, const GradientMemory<T>& memory) const {
    const auto& kernel = kernels_.gradient[scale_.capped()][pull_.entropy != 0.0];
    each_segment(out, first, last, [&](int64_t begin, int64_t n, float reference, const GradientMap& map) {
      kernel(out + begin, x + begin, n, map_from(reference), map, memory.from(begin));
    });
  }

  // Whether gradient_and_measure() may be called.
  static bool can_measure_beside(const LogitScale& scale, bool entropy) {
    return row_kernels<T>().sum_exp_beside != nullptr && !scale.capped() && !entropy;
  }

  // The gradient of all parts, past the caches, and meanwhile measure() of all parts of the row `next`, without
  // entropy.
  void gradient_and_measure(T* out, const T* x, CpuSoftmaxRow& next, const T* next_x) const {
    const auto head = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(out)) % 64 / sizeof(T));
    int64_t part = 0;  // of the next row
    each_segment(out, 0, parts_.count, [&](int64_t begin, int64_t n, float reference, const GradientMap& gradient) {
      const RowMap map = map_from(reference);
      // As much of this row as the part is of its own, up to a whole cache line.
      for (int64_t end = begin + n, to = end; begin < end; begin = to, ++part) {
        to = part + 1 < parts_.count ? std::clamp(parts_.end(part) + head, begin, end) : end;
        const StreamedGradient<T> mine = {out + begin, x + begin, to - begin, map, gradient};
        if (part < parts_.count && next.measure_beside(next_x, part, mine)) continue;
        kernels_.gradient[0][0](mine.out, mine.x, mine.n, map, gradient, {.streamed = true});
      }
    });
    for (; part < parts_.count; ++part) next.measure(next_x, part, false);
  }

  // The same gradient from what measure_in_place left; bitwise that of gradient().
  void scale_in_place(T* x, int64_t first, int64_t last) const {
    each_segment(x, first, last, [&](int64_t begin, int64_t n, float, const GradientMap& map) {
      kernels_.scale(x + begin, n, map.constant);
    });
  }

 private:
  // Elements before `split` are measured from reference[0], the others, and the sum, from reference[1].
  struct Part {
    ExpSum sum;
    int64_t split;
    float reference[2];
  };

  std::span<Part> parts() { return {state_, static_cast<size_t>(parts_.count)}; }

  RowMap map_from(float reference) const { return {scale_, reference, isa_kernels().fused_multiply_add}; }

  // What exponents are measured from, with what makes good the residual of its map: nearly all parts of a row share it.
  struct Origin {
    float reference;
    RowMap map;
    double residual;
    double factor;  // 2^-residual

    ExpSum without_residual(const ExpSum& sum) const { return sum.rebased(residual, factor); }
  };
  Origin origin_at(float reference) const {
    const RowMap map = map_from(reference);
    // 2^-residual: a residual is a rounding of numbers below 4096, and four terms are exact to float64.
    const double w = -map.residual() * kLn2;
    return {reference, map, map.residual(), 1.0 + w * (1.0 + w / 2.0 * (1.0 + w / 3.0))};
  }

  // measure() without entropy; false where the other row's gradient was not made beside it.
  bool measure_beside(const T* x, int64_t part, const StreamedGradient<T>& other) {
    const auto& sum_exp = kernels_.sum_exp[0][0];
    bool made = false;
    const auto checked = [&](const T* from, int64_t n, const RowMap& map) {
      made = map.fused && other.map.fused;
      return made ? kernels_.sum_exp_beside(from, n, map, other) : sum_exp[1](from, n, map);
    };
    state_[part] = measured(x, part, checked, sum_exp[0]);
    return made;
  }

  // `checked` and `rest` are of RowKernels: until a logit too far above the reference, and to the end.
  template <typename X, typename Checked, typename Rest>
  Part measured(X* x, int64_t part, const Checked& checked, const Rest& rest_of) const {
    constexpr Part kInvalid = {{NAN, NAN}, 0, {0.0f, 0.0f}};
    const int64_t begin = parts_.begin(part), n = parts_.size(part);
    X* const from = x + begin;
    Origin low = origin_;
    double member = NAN;  // a logit that is known to be among the summed ones
    if (poor_reference(scale_, reference_)) {
      // Masked target: its log-prob is -Infinity, and the rest of the row is as good as any. NaN and +Infinity spoil
      // it.
      if (!(reference_ < 0.0f)) return kInvalid;
      const float maximum = kernels_.max(from, n);
      if (maximum == INFINITY) return kInvalid;
      low = origin_at(maximum == -INFINITY ? 0.0f : well_placed(scale_, maximum));
      member = maximum;
    }
    const PartialSum first = checked(from, n, low.map);
    if (member != member && begin <= target_ && target_ < begin + first.end) member = target_logit_;
    const ExpSum sum = exact(first, low, member);
    if (first.end == n) return {sum, n, {low.reference, low.reference}};
    const int64_t split = first.end;
    const float maximum = kernels_.max(from + split, n - split);
    if (!std::isfinite(maximum)) return kInvalid;
    const Origin high = origin_at(well_placed(scale_, maximum));
    const PartialSum rest = rest_of(from + split, n - split, high.map);
    return {sum.rebased(scale_.log2_ratio(high.reference, low.reference)) + exact(rest, high, maximum),
            split,
            {low.reference, high.reference}};
  }

  // A sum without the residual of its map, and with the term of one member computed in float64: where it is the only
  // one, log-prob and entropy are 0. The reference's own term is exact already where there is no residual.
  ExpSum exact(const PartialSum& partial, const Origin& origin, double member) const {
    const ExpSum sum{partial.sum, partial.weighted};
    if (origin.residual == 0.0 && (member != member || member == origin.map.reference)) return sum;
    if (member != member) return origin.without_residual(sum);
    const PartialSum one = kernels_.term[scale_.capped()](static_cast<float>(member), origin.map);
    const ExpSum others = origin.without_residual({sum.sum - one.sum, sum.weighted - one.weighted});
    if (member == origin.map.reference) return others + ExpSum{1.0, 0.0};
    const double y = scale_.log2_ratio(member, origin.map.reference);
    const double term = exp2_of(y);
    return others + ExpSum{term, term * y};
  }

  // The whole row, measured from the highest reference of a part that is not all masked.
  SoftmaxRow merged() {
    reference_ = -INFINITY;
    for (Part& p : parts()) {
      if (p.sum.sum != 0.0 && p.reference[1] > reference_) reference_ = p.reference[1];
    }
    if (reference_ == -INFINITY) return {{NAN, NAN}, NAN, NAN};
    ExpSum total;
    for (Part& p : parts()) {
      if (p.sum.sum == 0.0) p = {{}, 0, {reference_, reference_}};  // of no weight from any reference
      const double shift = shift_from(p.reference[1]);
      total = total + (shift == 0.0 ? p.sum : p.sum.rebased(shift));
    }
    return {total, scale_.z(reference_), scale_.log2_ratio(target_logit_, reference_)};
  }

  // By how much, in base 2, the reference of the row lies above that of a part.
  double shift_from(float reference) const {
    return reference == reference_ ? 0.0 : scale_.log2_ratio(reference_, reference);
  }

  GradientMap gradient_from(float reference) const {
    const double shift = shift_from(reference) + map_from(reference).residual();
    const RowGradient g =
        RowGradient::from(pull_, log2_sum_ + shift, pull_.entropy == 0.0 ? 0.0 : entropy_, scale_.temperature);
    return {as_factor(g.constant), as_factor(g.linear)};
  }

  // fn(begin, count, reference, gradient map) for what is measured from one reference, in as few calls as there can be:
  // the ends of each cost as much as a few dozen groups. Then the target.
  template <typename Fn>
  void each_segment(T* out, int64_t first, int64_t last, const Fn& fn) const {
    const int64_t begin = parts_.begin(first), end = parts_.end(last - 1);
    if (invalid_) return void(std::fill(out + begin, out + end, from_float<T>(NAN)));
    int64_t from = begin;
    float reference = state_[first].reference[0];
    const auto segment = [&](int64_t to) {
      if (from != to) fn(from, to - from, reference, reference == reference_ ? gradient_ : gradient_from(reference));
      from = to;
    };
    const auto continues = [&](int64_t at, float from_here) {
      if (from_here == reference) return;
      segment(at);
      reference = from_here;
    };
    for (int64_t part = first; part < last; ++part) {
      const Part& p = state_[part];
      const int64_t middle = parts_.begin(part) + p.split;
      if (p.split > 0) continues(parts_.begin(part), p.reference[0]);
      if (middle < parts_.end(part)) continues(middle, p.reference[1]);
    }
    segment(end);
    if (begin <= target_ && target_ < end) set_target(out);
  }

  // Computed in float64 and rounded once.
  void set_target(T* out) const {
    // A masked logit gets no gradient, also where it is the target.
    const double slope = target_logit_ == -INFINITY ? 0.0 : scale_.slope(target_logit_);
    const double value = RowGradient::at_target(pull_, logprob_, entropy_, scale_.temperature);
    out[target_] = from_float<T>(static_cast<float>(slope == 0.0 ? 0.0 : value * slope));
  }

  const RowKernels<T>& kernels_ = row_kernels<T>();
  const LogitScale scale_;
  const RowParts parts_;
  int64_t target_ = 0;
  double target_logit_ = 0.0;  // read before an in-place pass overwrites it
  float reference_ = 0.0f;
  Origin origin_ = origin_at(0.0f);
  double log2_sum_ = 0.0;  // of 2^y over the row, y measured from the reference
  double logprob_ = 0.0;
  double lse_ = 0.0;
  double entropy_ = 0.0;
  RowPull pull_;
  bool invalid_ = false;
  GradientMap gradient_ = {};  // of what is measured from the reference
  Part state_[RowParts::kMost];
};

}  // namespace fapo
