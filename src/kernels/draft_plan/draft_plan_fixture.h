// For tests of plans: steps with random sequences and drafts, in the host's memory.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "kernels/draft_plan/draft_plan.h"

namespace foresight {

// What a plan reads. Copies of it need their pointers set anew (Connect).
struct PlannedStep {
  int count = 0;
  int drafts_max = 0;
  int layers = 0;
  int layer_views = 0;  // S or more
  int known = 0;        // rows
  int num_logits = 0;   // sequences with logits
  bool heads_all = false;
  std::vector<PlannedSequence> sequences = {};
  std::vector<ConfidenceScale> scales = {};
  std::vector<TokenId> known_tokens = {};
  // Of draft k of sequence r at [k * S + r].
  std::vector<TokenId> tokens = {};
  std::vector<float> logits = {};
  std::vector<float> margins = {};
  std::vector<SequenceRows> views = {};  // [layers, layer_views]

  void Connect(const TokenId* draft_tokens, const float* draft_logits, const float* draft_margins) {
    for (size_t r = 0; r < sequences.size(); ++r) {
      sequences[r].tokens = draft_tokens + r;
      sequences[r].logits = draft_logits + r;
      if (r % 3 != 0) sequences[r].margins = draft_margins + r;
    }
  }
};

// Sequences of 0 to drafts_max drafts; of some nothing but prompt rows. Confidences with many ties, some that
// are 0, as they are and in survivals, and some NaN.
inline PlannedStep RandomStep(int num_sequences, int drafts_max, bool heads_all, std::mt19937_64& rng) {
  const auto below = [&rng](int n) { return static_cast<int>(rng() % n); };
  PlannedStep step{.layers = 1 + below(4), .layer_views = num_sequences + below(3), .heads_all = heads_all};
  int drafts = 0;
  for (int r = 0; r < num_sequences; ++r) {
    PlannedSequence s = {.first_known = step.known, .known_rows = 1, .has_logits = 1};
    if (!heads_all && below(3) == 0) s.known_rows = 1 + below(9);
    if (!heads_all && below(4) == 0 && r > 0) s.has_logits = 0;
    s.first_scale = drafts;
    s.stride = num_sequences;
    if (s.has_logits != 0) s.num_drafts = r == 0 ? drafts_max : below(drafts_max + 1);
    step.sequences.push_back(s);
    step.drafts_max = std::max(step.drafts_max, s.num_drafts);
    step.known += s.known_rows;
    step.num_logits += s.has_logits;
    drafts += s.num_drafts;
  }
  for (int i = 0; i < drafts; ++i) {
    step.scales.push_back({.temperature = 0.5 + below(3), .shift = below(3) - 1.0, .margin_weight = 0.5});
  }
  for (int i = 0; i < step.known; ++i) step.known_tokens.push_back(below(1000));
  constexpr float kLogits[] = {0, 1.5f, -2, 30, -40, -1e30f, 1e30f, NAN};
  for (int i = 0; i < num_sequences * drafts_max; ++i) {
    step.tokens.push_back(1000 + below(1000));
    const float random = std::normal_distribution<float>(1, 3)(rng);
    step.logits.push_back(below(2) == 0 ? random : kLogits[below(8)]);
    step.margins.push_back(below(4) == 0 ? 0 : static_cast<float>(below(160)) / 10);
  }
  std::vector<int64_t> positions;
  for (int r = 0; r < step.layer_views; ++r) positions.push_back(below(100000));
  for (int i = 0; i < step.layers * step.layer_views; ++i) {
    step.views.push_back(
        {.first_row = -1, .num_rows = -1, .first_position = positions[i % step.layer_views], .cache = {}});
  }
  const int counts[] = {1, drafts, 1 + below(drafts)};
  step.count = counts[below(3)];
  step.Connect(step.tokens.data(), step.logits.data(), step.margins.data());
  return step;
}

// What a plan makes of it.
struct PlannedRows {
  std::vector<TokenId> tokens;
  std::vector<int64_t> positions;
  std::vector<int32_t> logit_rows;
  std::vector<int32_t> verified;
  std::vector<SequenceRows> views;
};

// `padding`: rows behind those of the step.
inline PlannedRows RunPlanRef(const KernelContext& ctx, const PlannedStep& step, int padding) {
  PlannedRows out;
  out.tokens.resize(step.known + step.count + padding);
  out.positions.resize(out.tokens.size());
  out.logit_rows.resize(step.num_logits + step.count + padding);
  out.verified.resize(step.num_logits);
  out.views = step.views;
  PlanDraftsRef(ctx, {.count = step.count,
                      .drafts_max = step.drafts_max,
                      .sequences = step.sequences,
                      .scales = step.scales.data(),
                      .known_tokens = step.known_tokens.data(),
                      .rows = static_cast<int>(out.tokens.size()),
                      .num_logits = static_cast<int>(out.logit_rows.size()),
                      .heads_all = step.heads_all,
                      .layers = step.layers,
                      .layer_views = step.layer_views,
                      .views = out.views.data(),
                      .tokens = out.tokens.data(),
                      .positions = out.positions.data(),
                      .logit_rows = out.logit_rows.data(),
                      .verified = out.verified.data()});
  return out;
}

}  // namespace foresight
