#include "engine/draft_replay.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace foresight {
namespace {

constexpr float kSureLogit = 12;  // of a recorded confidence of 1

float LogitOf(float probability) {
  return std::clamp(std::log(probability / (1 - probability)), -kSureLogit, kSureLogit);
}

}  // namespace

ReplayedChance::ReplayedChance(const DraftTrace& trace) : drafts_max_(static_cast<size_t>(trace.drafts_max)) {
  for (const TracedDomain& domain : trace.domains) {
    for (const TracedAnswer& answer : domain.answers) answers_.push_back(&answer);
  }
  CHECK(!answers_.empty(), "a trace without answers");
}

ReplayedChance::Place ReplayedChance::PlaceOf(int64_t seed, int64_t position) const {
  const TracedAnswer* answer = answers_[static_cast<uint64_t>(seed) % answers_.size()];
  const size_t positions = answer->acceptance.size() / drafts_max_;
  return {answer, static_cast<size_t>(position) % positions * drafts_max_};
}

std::optional<double> ReplayedChance::GivenProbability(const RandomKey& key) {
  const auto begin = begins_.find(key.seed);
  CHECK(begin != begins_.end(), "a draft of a request that has not drafted");
  const Place place = PlaceOf(key.seed, begin->second);
  const auto k = static_cast<size_t>(key.position - begin->second);
  CHECK(k < drafts_max_, "draft {} of {}: two requests of one seed?", k, drafts_max_);
  return place.answer->acceptance[place.first + k];
}

bool ReplayedChance::Accept(const RandomKey& key, double, double) {
  return chance_.Accept(key, *GivenProbability(key), /*q=*/1);
}

std::span<const float> ReplayedChance::Confidences(int64_t seed, int64_t position) const {
  const Place place = PlaceOf(seed, position);
  if (place.answer->confidences.empty()) return {};
  return std::span(place.answer->confidences).subspan(place.first, drafts_max_);
}

Status ReplayedDrafter::Propose(std::span<DraftRound> rounds) {
  rounds_ = {};
  RETURN_IF_ERROR(drafter_->Propose(rounds));
  rounds_ = rounds;
  for (DraftRound& round : rounds) {
    if (round.block->rule() == AcceptanceRule::kCoupled) {
      return InvalidArgument("replayed drafts are judged by rejection: a coupled request can't replay any");
    }
    chance_.Begin(round.sampler->seed(), round.block->position());
    round.on_device = {};
    SetConfidences(round);
  }
  return Status();
}

// Instead of those that the device has computed.
Status ReplayedDrafter::Settle() {
  RETURN_IF_ERROR(drafter_->Settle());
  for (DraftRound& round : rounds_) SetConfidences(round);
  rounds_ = {};
  return Status();
}

void ReplayedDrafter::SetConfidences(DraftRound& round) const {
  if (!has_confidences()) return;
  const std::span<const float> confidences =
      chance_.Confidences(round.sampler->seed(), round.block->position());
  for (size_t k = 0; k < round.block->tokens().size(); ++k) {
    round.evidence[k] = {.logit = LogitOf(confidences[k])};
  }
}

}  // namespace foresight
