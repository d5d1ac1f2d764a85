// Drafting and verification that cost what they cost, with outcomes that were recorded on another model: for
// measuring speed on weights whose drafts mean nothing. Benchmarks alone use it (EngineAccess::MakeReplay);
// the text is meaningless, and not what plain decoding gives.
//
// A request's seed names the answer that it replays, its position the place in it (both modulo what there
// is); whether a draft is accepted is drawn from the recorded probability with the request's own noise.
// Requests that run at the same time have seeds of their own, and are judged by rejection.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "drafting/drafter.h"
#include "speculative/chance.h"
#include "speculative/draft_traces.h"

namespace foresight {

// Judges by the trace and draws as ever.
class ReplayedChance final : public Chance {
 public:
  // One or more answers; `trace` outlives this object.
  explicit ReplayedChance(const DraftTrace& trace);

  bool Accept(const RandomKey& key, double p, double q) override;
  std::optional<double> GivenProbability(const RandomKey& key) override;
  TokenId Draw(const RandomKey& key, const Distribution& distribution) override {
    return chance_.Draw(key, distribution);
  }

  // The request of this seed drafts from this position on.
  void Begin(int64_t seed, int64_t position) { begins_[seed] = position; }
  // Draft k of a round that begins at `position`: entries of the trace. Empty: it has no confidences.
  std::span<const float> Confidences(int64_t seed, int64_t position) const;

 private:
  struct Place {
    const TracedAnswer* answer;
    size_t first;  // entry of the round's first draft
  };
  Place PlaceOf(int64_t seed, int64_t position) const;

  KeyedChance chance_;
  const size_t drafts_max_;
  std::vector<const TracedAnswer*> answers_;
  std::unordered_map<int64_t, int64_t> begins_;  // by seed
};

// Another drafter, with the confidences of the trace.
class ReplayedDrafter final : public Drafter {
 public:
  // The drafts are at most as long as the trace's. `chance` outlives this object.
  ReplayedDrafter(std::unique_ptr<Drafter> drafter, ReplayedChance& chance)
      : drafter_(std::move(drafter)), chance_(chance) {}

  DraftMethod method() const override { return drafter_->method(); }
  int drafts_max() const override { return drafter_->drafts_max(); }
  bool has_confidences() const override { return drafter_->has_confidences(); }
  int lag() const override { return drafter_->lag(); }
  void Begin(int slot, std::span<const TokenId> tokens, int64_t tokens_max) override {
    drafter_->Begin(slot, tokens, tokens_max);
  }
  void End(int slot) override { drafter_->End(slot); }
  // Errors: also kInvalidArgument for a coupled request, whose drafts no trace judges.
  Status Propose(std::span<DraftRound> rounds) override;
  Status Settle() override;
  Status Observe(std::span<const ObservedRows> rows) override { return drafter_->Observe(rows); }

 private:
  void SetConfidences(DraftRound& round) const;

  const std::unique_ptr<Drafter> drafter_;
  ReplayedChance& chance_;
  std::span<DraftRound> rounds_;  // of the last Propose
};

}  // namespace foresight
