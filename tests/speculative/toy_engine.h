// A small engine around tables instead of models: the loop that requests go through, with the speculation
// code that serves them.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "sampling/sampler.h"
#include "speculative/acceptance.h"
#include "speculative/planner.h"

namespace foresight {

using Tokens = std::vector<TokenId>;
using Logits = std::vector<float>;

inline Logits LogsOf(const std::vector<double>& probabilities) {
  Logits logits;
  for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));  // log 0 = -inf masks
  return logits;
}

struct ToyModel {
  int vocab_size = 2;
  // Of request r, given all tokens before.
  std::function<Logits(int r, const Tokens& before)> target;
  // Of the draft's slot k (0-based), given all tokens before, drafts among them; and how sure it is of that
  // slot.
  std::function<Logits(int r, const Tokens& before, int k)> draft;
  std::function<float(int r, const Tokens& before, int k)> confidence;
  // Its slots see each other, as a DSpark block's: what comes of slot k is another where there are more.
  bool sees_block = false;
};

// Tables filled by a generator keyed by their arguments: the same whenever they are asked for.
inline ToyModel RandomModel(uint64_t seed, int vocab_size = 2) {
  const auto random = [=](int table, int r, const Tokens& before, int k) {
    uint64_t key = MixBits(MixBits(MixBits(seed + 1) + table) + r) + k;
    for (TokenId token : before) key = MixBits(key * 31 + token + 1);
    return std::mt19937_64(MixBits(key));
  };
  const auto logits = [=](std::mt19937_64 generator) {
    std::vector<double> p;
    for (int v = 0; v < vocab_size; ++v)
      p.push_back(0.05 + std::uniform_real_distribution<double>()(generator));
    return LogsOf(p);
  };
  return {.vocab_size = vocab_size,
          .target = [=](int r, const Tokens& before) { return logits(random(0, r, before, 0)); },
          .draft = [=](int r, const Tokens& before, int k) { return logits(random(1, r, before, k)); },
          .confidence =
              [=](int r, const Tokens& before, int k) {
                auto generator = random(2, r, before, k);
                return std::uniform_real_distribution<float>()(generator);
              },
          .sees_block = true};
}

struct ToyRequests {
  int num = 2;
  int tokens = 3;  // to generate, each
  SamplingParams params = {};
  AcceptanceRule rule = AcceptanceRule::kRejection;
  DraftOptions draft = {};
  int drafts_max = 2;
  bool claim_coupled = false;  // lie to the planner about the rule
};

// How many of the drafts are verified, after the planner has spoken: for controls that break the rules.
using Cut = std::function<int(const DraftBlock& block, int planned)>;

// What the requests generate. Logits of the target pass through `mask` first, if there is one.
inline std::vector<Tokens> Generate(
    const ToyModel& model, const ToyRequests& requests, Chance& chance, StepPlanning& planning,
    const Cut& cut = {},
    const std::function<void(const Tokens& before, std::span<float> logits)>& mask = {}) {
  Speculator speculator(model.vocab_size, requests.drafts_max, chance);
  std::vector<Sampler> samplers;
  std::vector<DraftBlock> blocks;
  std::vector<Tokens> texts(requests.num);
  for (int r = 0; r < requests.num; ++r) {
    SamplingParams params = requests.params;
    params.seed = params.seed.value_or(0) * requests.num + r;
    samplers.emplace_back(params, model.vocab_size);
    blocks.emplace_back(params, requests.rule, model.vocab_size, requests.drafts_max, requests.draft);
  }
  for (;;) {
    std::vector<RequestLoad> load;
    for (int r = 0; r < requests.num; ++r) {
      const int left = requests.tokens - static_cast<int>(texts[r].size());
      if (left == 0) continue;
      const bool coupled = requests.claim_coupled || requests.rule == AcceptanceRule::kCoupled;
      load.push_back({.id = {.slot = r, .generation = 1},
                      .drafts_max = std::min(requests.drafts_max, left - 1),
                      .coupled = coupled});
    }
    if (load.empty()) return texts;
    const std::span<const int> depths = planning.BeginStep({.requests = load, .context_tokens = 1});
    for (size_t i = 0; i < load.size(); ++i) {
      const int r = load[i].id.slot;
      blocks[r].Begin(std::ssize(texts[r]));
      Tokens before = texts[r];
      std::vector<float> confidences;
      const int block = model.sees_block ? kDraftPositionsMax * planning.LongestDraft() : 0;
      for (int k = 0; k < depths[i]; ++k) {
        confidences.push_back(model.confidence(r, before, k));
        const Logits logits = model.draft(r, before, block + k);
        const Result<TokenId> token = speculator.Draft(logits, samplers[r], blocks[r]);
        CHECK(token.ok(), "{}", token.status().ToString());
        before.push_back(*token);
      }
      planning.SetConfidences(static_cast<int>(i), confidences);
    }
    const std::span<const int> plan = planning.Plan();
    std::vector<int> accepted;
    for (size_t i = 0; i < load.size(); ++i) {
      const int r = load[i].id.slot;
      const int verified = cut ? cut(blocks[r], plan[i]) : plan[i];
      Tokens before = texts[r];
      Logits rows;
      for (int k = 0; k <= verified; ++k) {
        Logits row = model.target(r, before);
        if (mask) mask(before, row);
        rows.insert(rows.end(), row.begin(), row.end());
        if (k < verified) before.push_back(blocks[r].tokens()[k]);
      }
      const Result<VerifiedTokens> result = speculator.Verify(rows, verified, samplers[r], blocks[r]);
      CHECK(result.ok(), "{}", result.status().ToString());
      for (const SampledToken& token : result->tokens) {
        texts[r].push_back(token.token);
        samplers[r].AddGenerated(token.token);
      }
      accepted.push_back(std::min(result->accepted, plan[i]));
    }
    planning.EndStep(accepted, std::nullopt);
  }
}

// Costs of a step by its rows, from steps per second; drafting and the host are next to free.
inline StepCosts CostsOf(const std::vector<double>& steps_per_second, int rows_max = 64) {
  StepCostTable table{.model = "toy",
                      .build = "toy",
                      .device = "none",
                      .drafts_max = 1,
                      .host_ms = 0,
                      .draft_ms = {{1, 1e-9}},
                      .draft_first_ms = {{1, 1e-9}},
                      .verify_ms = {}};
  for (size_t i = 0; i < steps_per_second.size(); ++i) {
    table.verify_ms[1].push_back({static_cast<int>(i) + 1, 1000 / steps_per_second[i]});
  }
  Result<StepCosts> costs = StepCosts::Create(table, rows_max, 64);
  CHECK(costs.ok(), "{}", costs.status().ToString());
  return std::move(*costs);
}

inline StepPlanning PlanningOf(const PlannerOptions& options, const ToyRequests& requests,
                               const StepCosts& costs) {
  Result<StepPlanning> planning = StepPlanning::Create(
      options, {.slots_max = requests.num, .drafts_max = requests.drafts_max, .rows_max = 64}, costs);
  CHECK(planning.ok(), "{}", planning.status().ToString());
  return std::move(*planning);
}

}  // namespace foresight
