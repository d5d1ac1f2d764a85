#include "speculative/history.h"

#include <algorithm>

#include "base/check.h"

namespace foresight {
namespace {

// What a new round counts for in the averages of its request and of all requests.
constexpr float kOwnShare = 1.0f / 16;
constexpr int kAllRounds = 256;
// For how many of them what is expected before the first one counts: a mere guess, and what was measured of
// many texts. Rounds of one request are alike.
constexpr int kGuessRounds = 8;
constexpr int kMeasuredRounds = 256;
// Before anything is known: hopeful, so that drafting gets its first try.
constexpr float kPriorConfidence = 0.8f;

// own starts at what holds for all.
void AverageOfOwn(float value, float all, float& own) {
  const float before = own < 0 ? all : own;
  own = before + kOwnShare * (value - before);
}

void AverageOfAll(float value, int& rounds, float& all) {
  rounds = std::min(rounds + 1, kAllRounds);
  all += (value - all) / static_cast<float>(rounds);
}

}  // namespace

SpeculationHistory::SpeculationHistory(int slots_max, int drafts_max)
    : drafts_max_(drafts_max),
      tenants_(slots_max),
      mean_(static_cast<size_t>(slots_max) * drafts_max, kUnknown),
      acceptance_(static_cast<size_t>(slots_max) * drafts_max, kUnknown),
      recent_(static_cast<size_t>(slots_max) * drafts_max * 2, kUnknown),
      all_mean_(drafts_max, kPriorConfidence),
      all_acceptance_(drafts_max, kPriorConfidence),
      all_means_(drafts_max, kGuessRounds),
      all_acceptances_(drafts_max, kGuessRounds) {
  CHECK(slots_max > 0 && drafts_max > 0);
}

void SpeculationHistory::Expect(std::span<const float> acceptance) {
  CHECK(std::ssize(acceptance) == drafts_max_ && step_ == 0);
  is_measured_ = true;
  all_mean_.assign(acceptance.begin(), acceptance.end());
  all_acceptance_ = all_mean_;
  all_means_.assign(drafts_max_, kMeasuredRounds);
  all_acceptances_ = all_means_;
}

SpeculationHistory::Tenant& SpeculationHistory::TenantOf(RequestId id) {
  CHECK(id.slot >= 0 && id.slot < std::ssize(tenants_), "slot {}", id.slot);
  Tenant& tenant = tenants_[id.slot];
  if (!tenant.known || tenant.generation != id.generation) {
    tenant = Tenant{.generation = id.generation, .known = true};
    std::fill_n(mean_.begin() + Place(id.slot, 0), drafts_max_, kUnknown);
    std::fill_n(acceptance_.begin() + Place(id.slot, 0), drafts_max_, kUnknown);
    std::fill_n(recent_.begin() + Place(2 * id.slot, 0), 2 * drafts_max_, kUnknown);
  }
  return tenant;
}

void SpeculationHistory::RecordConfidences(RequestId id, std::span<const float> confidences) {
  CHECK(std::ssize(confidences) <= drafts_max_);
  Tenant& tenant = TenantOf(id);
  tenant.newer = 1 - tenant.newer;
  tenant.steps[tenant.newer] = step_;
  float* recent = &recent_[Place(2 * id.slot + tenant.newer, 0)];
  std::fill_n(recent, drafts_max_, kUnknown);
  std::copy(confidences.begin(), confidences.end(), recent);
  const int count = static_cast<int>(confidences.size());
  float* const own = &mean_[Place(id.slot, 0)];
  float* const all = all_mean_.data();
  int* const rounds = all_means_.data();
  // One after the other, and without a store that depends, they are done four at a time.
  for (int j = 0; j < count; ++j) AverageOfOwn(recent[j], all[j], own[j]);
  for (int j = 0; j < count; ++j) AverageOfAll(recent[j], rounds[j], all[j]);
}

void SpeculationHistory::RecordOutcome(RequestId id, int verified, int accepted) {
  CHECK(0 <= accepted && accepted <= verified && verified <= drafts_max_);
  if (verified == 0) return;
  TenantOf(id);
  // Behind the first rejection nothing is known: a draft counts when it was reached.
  for (int j = 0; j < std::min(accepted + 1, verified); ++j) {
    const float value = j < accepted ? 1 : 0;
    AverageOfOwn(value, all_acceptance_[j], acceptance_[Place(id.slot, j)]);
    AverageOfAll(value, all_acceptances_[j], all_acceptance_[j]);
  }
}

double SpeculationHistory::AcceptanceRate(RequestId id, int j) const {
  const float own = Find(id) != nullptr ? acceptance_[Place(id.slot, j)] : kUnknown;
  return own >= 0 ? own : all_acceptance_[j];
}

}  // namespace foresight
