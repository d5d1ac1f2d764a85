// The drafted tokens of one sequence in one round, and what they were drawn from (dspark.md 1.7).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "sampling/distribution.h"
#include "sampling/sampler.h"
#include "sampling/sampling_params.h"

namespace foresight {

// How a drafted token is judged (dspark.md 3).
enum class AcceptanceRule : uint8_t {
  kRejection,  // accepted with probability min(1, p/q), else the residual: accepts most; the law of the text
               // is the law without speculation
  kCoupled,    // the target draws with the noise of (seed, position), the draft used the same: the text of a
               // seed is the text without speculation
};

std::string_view AcceptanceRuleName(AcceptanceRule rule);           // "rejection", "coupled"
Result<AcceptanceRule> ParseAcceptanceRule(std::string_view name);  // kInvalidArgument
// A request with a seed and a greedy one are coupled, others use rejection.
AcceptanceRule DefaultAcceptanceRule(const SamplingParams& params);

struct RowStatistics;  // kernels/sampling/sampling.h

// What a draft was drawn from by a device, in its memory: valid until the drafter's next round. Without
// logits: a point mass.
struct DeviceDistribution {
  const float* logits = nullptr;  // [V]
  const RowStatistics* statistics = nullptr;
};

// Any draft distribution is exact, as long as q is what the token was drawn from; these decide how often it
// is accepted and how much memory q takes.
struct DraftOptions {
  bool truncate = true;       // the request's top_k, top_p and min_p hold for the draft as well
  bool penalties = true;      // so do its penalties (counted along the drafted prefix) and logit bias
  int candidates_max = 4096;  // rejection: tokens that can be drafted at a position, the likeliest ones
  bool on_device = false;     // a device draws and judges: q stays in its memory, and isn't cut
};

inline constexpr TokenId kPendingDraft = -1;

// Lives as long as its sequence. Allocates in the constructor only: with rejection on the host 12 bytes a
// candidate and position.
class DraftBlock {
 public:
  // `params` has passed Validate(vocab_size); `drafts_max` is the longest draft of a round.
  DraftBlock(const SamplingParams& params, AcceptanceRule rule, int vocab_size, int drafts_max,
             const DraftOptions& options = {});

  // Begins the next round with no drafts: the first one will have the absolute position `position`. Rounds
  // are numbered for the life of the sequence, so that a position drafted twice gets fresh noise (dspark.md
  // 3.5); call it for plain steps too.
  void Begin(int64_t position);
  // Appends a token that was chosen, not drawn (prompt lookup, argmax): q is a point mass.
  void AppendPoint(TokenId token);
  // Appends a token drawn from q; a copy of q is kept where the rule needs it.
  void AppendDrawn(TokenId token, const Distribution& q);
  // Appends a token that the device draws, of a block on the device: the host doesn't know it before Settle.
  void AppendPending(const TokenId* on_device, const DeviceDistribution& q);
  void Settle(int k, TokenId token);

  AcceptanceRule rule() const { return rule_; }
  bool on_device() const { return on_device_; }
  int64_t position() const { return position_; }
  int64_t round() const { return round_; }
  // Of a pending draft: kPendingDraft.
  std::span<const TokenId> tokens() const { return tokens_; }
  // Where the device has the token of draft k while it is pending; null otherwise.
  const TokenId* pending(int k) const { return on_device_ ? pending_[k] : nullptr; }
  bool is_pending() const { return !tokens_.empty() && tokens_.back() == kPendingDraft; }
  int drafts_max() const { return drafts_max_; }
  // The request's parameters as they hold for the draft.
  const SamplingParams& draft_params() const { return draft_params_; }
  // q of draft k, 0-based; with the coupled rule, which needs none, a point mass.
  Distribution q(int k) const;
  // The same of a block on the device.
  const DeviceDistribution& device_q(int k) const;

 private:
  void CheckRoom() const;

  SamplingParams draft_params_;
  AcceptanceRule rule_;
  bool on_device_ = false;
  int drafts_max_ = 0;
  int64_t position_ = 0;
  int64_t round_ = 0;
  std::vector<TokenId> tokens_;
  int q_stride_ = 1;                          // places for q of one draft
  std::vector<int> q_sizes_;                  // [drafts_max]
  std::vector<TokenId> q_tokens_;             // [drafts_max, q_stride]
  std::vector<double> q_log_weights_;         // [drafts_max, q_stride]
  std::vector<DeviceDistribution> device_q_;  // [drafts], on the device
  std::vector<const TokenId*> pending_;       // the same
};

// Names the random numbers that draft k of the block is drawn with.
RandomKey DraftKey(const Sampler& sampler, const DraftBlock& block, int k);

}  // namespace foresight
