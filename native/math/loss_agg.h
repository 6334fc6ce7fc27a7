#pragma once
// lossAggMode: all modes are linear, so each is a weight per token. Names and meaning are verl's agg_loss.
#include "native/math/host_device.h"

namespace fapo {

enum class LossAggMode : int32_t {
  token_mean,
  token_sum,
  seq_mean_token_sum,
  seq_mean_token_mean,
  seq_mean_token_sum_norm,
};

struct LossAgg {
  LossAggMode mode = LossAggMode::token_mean;
  double tokens = 0.0;     // counted ones, of the whole batch
  double sequences = 0.0;  // with at least one counted token, of the whole batch
  double horizon = 1.0;

  // The weight of a token whose sequence has `length` counted tokens.
  FAPO_HD double weight(double length) const {
    switch (mode) {
      case LossAggMode::token_mean:
        return 1.0 / tokens;
      case LossAggMode::token_sum:
        return 1.0;
      case LossAggMode::seq_mean_token_sum:
        return 1.0 / sequences;
      case LossAggMode::seq_mean_token_mean:
        return 1.0 / (sequences * length);
      case LossAggMode::seq_mean_token_sum_norm:
        return 1.0 / (sequences * horizon);
    }
    return 0.0;
  }
};

}  // namespace fapo
