#pragma once
// One row of logits on the CPU: forward to the numbers of a SoftmaxRow, and back to the gradient of the row. The
// traversal is here, the arithmetic in math/softmax_row.h, the loops in row_kernels.h.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "native/half.h"
#include "native/math/softmax_row.h"
#include "native/simd/row_kernels.h"

namespace fapo {

// A row is measured from the target's own logit, which needs no search for the maximum: the first pass over the row is
// the only one. Where some logit lies far above (an unlikely token), the rest of the row is measured from its maximum.
template <typename T>
class CpuSoftmaxRow {
 public:
  CpuSoftmaxRow(const LogitScale& scale, int64_t vocab) : scale_(scale), vocab_(vocab) {}

  double logprob() const { return logprob_; }
  double lse() const { return lse_; }
  double entropy() const { return entropy_; }  // after forward() with entropy, or restore()

  void forward(const T* x, int64_t target, bool entropy) {
    const auto& sum_exp = kernels_.sum_exp[scale_.capped()][entropy];
    const SoftmaxRow row = measure(x, target, [&](bool checked, const T* part, int64_t n, const ExpMap& map) {
      return sum_exp[checked](part, n, map);
    });
    finish(row);
    if (entropy) entropy_ = row.entropy();
  }

  // As forward, and leaves 2^y in place of the row, for scale_in_place. float32 without a cap alone.
  void forward_in_place(T* x, int64_t target) {
    finish(measure(x, target, [&](bool checked, const T* part, int64_t n, const ExpMap& map) {
      return kernels_.sum_exp_in_place[checked](const_cast<T*>(part), n, map);
    }));
  }

  // What forward() found, from the outputs that were kept of it: p[j] = exp(z[j] - z[target] + logprob), which stays
  // exact where a float32 lse cannot, or exp(z[j] - lse) where that logprob is -Infinity.
  void restore(const T* x, int64_t target, double logprob, double lse, double entropy) {
    split_ = 0;
    shift_ = 0.0;
    logprob_ = logprob;
    lse_ = lse;
    entropy_ = entropy;
    const double target_logit = to_float(x[target]);
    double reference = restored_reference(scale_, target_logit, logprob, lse);
    if (reference != reference) reference = kernels_.max(x, vocab_);
    const float rounded = well_placed(scale_, static_cast<float>(reference));
    map_[0] = map_[1] = ExpMap::from(scale_, rounded);
    log2_sum_ = restored_log2_sum(scale_, rounded, target_logit, logprob, lse);
  }

  // out = gradient of the row; out may be x. After forward().
  void gradient(T* out, const T* x, int64_t target, const RowPull& pull, bool streamed) const {
    if (invalid(pull)) return fill_nan(out);
    const double target_logit = to_float(x[target]);  // before an in-place pass overwrites it
    const RowGradient g = RowGradient::from(pull, log2_sum_, pull.entropy == 0.0 ? 0.0 : entropy_, scale_.temperature);
    const auto& kernel = kernels_.gradient[scale_.capped()][pull.entropy != 0.0];
    if (split_ > 0) {
      // The part before the split was measured from a reference that lies shift_ lower.
      const double factor = exp2_of(-shift_);
      kernel(out, x, split_, map_[0],
             {as_factor(factor * (g.constant - g.linear * shift_)), as_factor(factor * g.linear)}, streamed);
    }
    kernel(out + split_, x + split_, vocab_ - split_, map_[1], {as_factor(g.constant), as_factor(g.linear)}, streamed);
    set_target(out, target, target_logit, pull);
  }

  // The same gradient from what forward_in_place left; bitwise that of gradient().
  void scale_in_place(T* x, int64_t target, double target_logit, const RowPull& pull) const {
    if (invalid(pull)) return fill_nan(x);
    const RowGradient g = RowGradient::from(pull, log2_sum_, 0.0, scale_.temperature);
    if (split_ > 0) kernels_.scale(x, split_, as_factor(exp2_of(-shift_) * g.constant));
    kernels_.scale(x + split_, vocab_ - split_, as_factor(g.constant));
    set_target(x, target, target_logit, pull);
  }

  void fill_nan(T* out) const { std::fill_n(out, vocab_, from_float<T>(NAN)); }

 private:
  template <typename SumExp>
  SoftmaxRow measure(const T* x, int64_t target, const SumExp& sum_exp) {
    split_ = 0;
    shift_ = 0.0;
    const float target_logit = to_float(x[target]);
    float reference = target_logit;
    if (poor_reference(scale_, reference)) {
      // Masked target: its log-prob is -Infinity, and the rest of the row is as good as any. NaN and +Infinity spoil
      // it.
      if (reference < 0.0f) reference = kernels_.max(x, vocab_);
      if (!std::isfinite(reference)) return invalid_row();
    }
    reference = well_placed(scale_, reference);
    map_[0] = map_[1] = ExpMap::from(scale_, reference);

    PartialSum part = sum_exp(true, x, vocab_, map_[0]);
    ExpSum total{part.sum, part.weighted};
    if (part.end < vocab_) {
      const float maximum = kernels_.max(x + part.end, vocab_ - part.end);
      if (!std::isfinite(maximum)) return invalid_row();
      split_ = part.end;
      const float higher = well_placed(scale_, maximum);
      shift_ = scale_.log2_ratio(higher, reference);
      reference = higher;
      map_[1] = ExpMap::from(scale_, reference);
      part = sum_exp(false, x + split_, vocab_ - split_, map_[1]);
      total = total.rebased(shift_) + ExpSum{part.sum, part.weighted};
    }
    return {total, scale_.z(reference), scale_.log2_ratio(target_logit, reference)};
  }

  static SoftmaxRow invalid_row() { return {{NAN, NAN}, NAN, NAN}; }

  void finish(const SoftmaxRow& row) {
    log2_sum_ = row.log2_sum();
    logprob_ = row.logprob();
    lse_ = row.lse();
  }

  bool invalid(const RowPull& pull) const {
    return log2_sum_ != log2_sum_ || logprob_ != logprob_ || pull.logprob != pull.logprob ||
           pull.entropy != pull.entropy;
  }

  // Computed in float64 and rounded once.
  void set_target(T* out, int64_t target, double target_logit, const RowPull& pull) const {
    // A masked logit gets no gradient, also where it is the target.
    const double slope = target_logit == -INFINITY ? 0.0 : scale_.slope(target_logit);
    const double value = RowGradient::at_target(pull, logprob_, entropy_, scale_.temperature);
    out[target] = from_float<T>(static_cast<float>(slope == 0.0 ? 0.0 : value * slope));
  }

  const RowKernels<T>& kernels_ = row_kernels<T>();
  const LogitScale scale_;
  const int64_t vocab_;
  double log2_sum_ = 0.0;  // of 2^y over the row, y measured from the last reference
  double logprob_ = 0.0;
  double lse_ = 0.0;
  double entropy_ = 0.0;
  ExpMap map_[2] = {};
  int64_t split_ = 0;   // the row from here on is measured from a higher reference
  double shift_ = 0.0;  // by this much, in base 2
};

}  // namespace fapo
