#include "drawing/device_draws.h"

#include <algorithm>
#include <cmath>

namespace foresight {

bool IsDrawnByDevice(const SamplingParams& params, const Device& device) {
  return !device.is_host() && !params.has_penalties() && params.logit_bias.empty() && !params.logprobs;
}

SampleRow DeviceDraw(const SamplingParams& params, const RandomKey& key) {
  SampleRow row = {.noise = RandomSequence(key).state()};
  if (params.greedy()) return row;
  row.inverse_temperature = 1 / params.temperature;
  if (params.min_p > 0) row.lowest_log_weight = std::log(params.min_p);
  row.top_p = params.top_p;
  row.top_k = static_cast<int32_t>(std::clamp<int64_t>(params.top_k, 0, INT32_MAX));
  return row;
}

bool KeepsDistribution(const DraftBlock& block) {
  return block.rule() == AcceptanceRule::kRejection && !block.draft_params().greedy();
}

Status UndrawableDraft(int k) {
  return Error(StatusCode::kInternal,
               "logits of draft {}: want finite values or -inf, and not all of them masked", k);
}

}  // namespace foresight
