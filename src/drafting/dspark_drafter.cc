#include "drafting/dspark_drafter.h"

#include <algorithm>
#include <cmath>

#include "drawing/device_draws.h"
#include "kernels/sampling/logit_margins.h"

namespace foresight {
namespace {

bool IsGreedy(const DraftRound& round) {
  return round.block->draft_params().greedy();
}

// Damaged weights give anything; planners take numbers.
Status CheckConfidence(float logit, int k) {
  if (std::isfinite(logit)) return Status();
  return Error(StatusCode::kInternal, "confidence of draft {}: want a finite logit, got {}", k, logit);
}

}  // namespace

DSparkDrafter::DSparkDrafter(int drafts_max, int slots_max, Model& model, SpeculatorTeam& speculators)
    : drafts_max_(drafts_max), model_(model), speculators_(speculators) {
  host_rounds_.reserve(slots_max);
  device_rounds_.reserve(slots_max);
  states_.reserve(slots_max);
  previous_.reserve(slots_max);
  host_draws_.reserve(slots_max);
  device_draws_.reserve(static_cast<size_t>(drafts_max) * slots_max);
  pending_.reserve(slots_max);
}

Status DSparkDrafter::Propose(std::span<DraftRound> rounds) {
  host_rounds_.clear();
  device_rounds_.clear();
  pending_.clear();
  for (DraftRound& round : rounds) {
    (round.block->on_device() ? device_rounds_ : host_rounds_).push_back(&round);
  }
  // The device's come last: what their drafts were drawn from stays in its memory.
  RETURN_IF_ERROR(ProposeInGroups(host_rounds_, /*on_device=*/false));
  return ProposeInGroups(device_rounds_, /*on_device=*/true);
}

Status DSparkDrafter::ProposeInGroups(std::span<DraftRound* const> rounds, bool on_device) {
  const size_t group_max = static_cast<size_t>(model_.max_step_rows() / drafts_max_);
  for (size_t begin = 0; begin < rounds.size(); begin += group_max) {
    const auto group = rounds.subspan(begin, std::min(rounds.size() - begin, group_max));
    states_.clear();
    previous_.clear();
    const int depth_max = group.front()->depth_max;
    int depth = 0;
    for (const DraftRound* round : group) {
      states_.push_back(round->state);
      previous_.push_back(round->tokens.back());
      depth = std::max(depth, round->depth);
    }
    // Its rows see each other: how many there are follows from the step's plan, not from the group.
    const DraftBlockInputs block = {.sequences = states_,
                                    .anchors = previous_,
                                    .block = depth_max > 0 ? depth_max : drafts_max_,
                                    .keep_outputs = on_device && begin > 0};
    RETURN_IF_ERROR(on_device ? DrawOnDevice(group, block, depth) : DrawOnHost(group, block, depth));
  }
  return Status();
}

Status DSparkDrafter::DrawOnHost(std::span<DraftRound* const> rounds, const DraftBlockInputs& block,
                                 int depth) {
  const int64_t vocab_size = model_.config().vocab_size;
  RETURN_IF_ERROR(model_.DraftBlock(block).status());
  for (int k = 0; k < depth; ++k) {
    ASSIGN_OR_RETURN(const DraftHeadOutputs head, model_.DraftHead(k, previous_));
    host_draws_.clear();
    for (size_t r = 0; r < rounds.size(); ++r) {
      const DraftRound& round = *rounds[r];
      if (k >= round.depth) continue;
      host_draws_.push_back({.logits = head.logits.subspan(r * vocab_size, vocab_size),
                             .sampler = round.sampler,
                             .block = round.block});
      if (head.confidence_logits.empty()) continue;
      RETURN_IF_ERROR(CheckConfidence(head.confidence_logits[r], k));
      round.evidence[k] = {.logit = head.confidence_logits[r],
                           .margin = IsGreedy(round) ? LogitMargin(host_draws_.back().logits) : 0};
    }
    RETURN_IF_ERROR(speculators_.DraftAll(host_draws_));
    for (size_t r = 0, drawn = 0; r < rounds.size(); ++r) {
      if (k < rounds[r]->depth) previous_[r] = host_draws_[drawn++].token;
    }
  }
  return Status();
}

Status DSparkDrafter::DrawOnDevice(std::span<DraftRound* const> rounds, const DraftBlockInputs& block,
                                   int depth) {
  device_draws_.clear();
  bool keep_distributions = false;
  const bool margins = has_confidences() && std::any_of(rounds.begin(), rounds.end(),
                                                        [](const DraftRound* r) { return IsGreedy(*r); });
  for (int k = 0; k < depth; ++k) {  // rounds that are less deep are drawn along, and left out below
    for (const DraftRound* round : rounds) {
      device_draws_.push_back(
          DeviceDraw(round->block->draft_params(), DraftKey(*round->sampler, *round->block, k)));
      keep_distributions |= KeepsDistribution(*round->block);
    }
  }
  ASSIGN_OR_RETURN(const DrawnTokens drawn, model_.DraftTokens({.block = block,
                                                                .depth = depth,
                                                                .draws = device_draws_,
                                                                .keep_distributions = keep_distributions,
                                                                .margins = margins}));
  const size_t count = rounds.size();
  for (size_t r = 0; r < count; ++r) {
    DraftRound& round = *rounds[r];
    if (has_confidences()) {
      round.on_device = {.tokens = drawn.device_tokens + r,
                         .confidence_logits = drawn.device_confidence_logits + r,
                         .margins = IsGreedy(round) ? drawn.device_margins + r : nullptr,
                         .stride = drawn.stride};
    }
    for (int k = 0; k < round.depth; ++k) {
      const size_t i = static_cast<size_t>(k) * drawn.stride + r;
      DeviceDistribution q;
      if (KeepsDistribution(*round.block)) {
        q = {.logits = drawn.logits + i * model_.config().vocab_size, .statistics = drawn.statistics + i};
      }
      round.block->AppendPending(drawn.device_tokens + i, q);
    }
  }
  pending_.push_back({rounds, drawn});
  return Status();
}

Status DSparkDrafter::Settle() {
  for (const auto& [rounds, drawn] : pending_) {
    for (size_t r = 0; r < rounds.size(); ++r) {
      const DraftRound& round = *rounds[r];
      for (int k = 0; k < round.depth; ++k) {
        const size_t i = static_cast<size_t>(k) * drawn.stride + r;
        if (drawn.errors[i] != 0) return UndrawableDraft(k);
        round.block->Settle(k, drawn.tokens[i]);
        if (drawn.confidence_logits.empty()) continue;
        RETURN_IF_ERROR(CheckConfidence(drawn.confidence_logits[i], k));
        round.evidence[k] = {.logit = drawn.confidence_logits[i],
                             .margin = IsGreedy(round) ? drawn.margins[i] : 0};
      }
    }
  }
  pending_.clear();
  return Status();
}

}  // namespace foresight
