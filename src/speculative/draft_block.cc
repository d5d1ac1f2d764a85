#include "speculative/draft_block.h"

#include <algorithm>

#include "base/check.h"

namespace foresight {
namespace {

// The most tokens a draft can be drawn from.
int CandidatesMax(const SamplingParams& params, AcceptanceRule rule, bool on_device, int vocab_size) {
  if (rule == AcceptanceRule::kCoupled || params.greedy() || on_device)
    return 1;  // q isn't needed, or is a point mass
  return static_cast<int>(std::min<int64_t>(params.top_k, vocab_size));
}

SamplingParams DraftParams(const SamplingParams& params, AcceptanceRule rule, const DraftOptions& options) {
  SamplingParams draft;
  draft.temperature = params.temperature;
  if (options.truncate) {
    draft.top_p = params.top_p;
    draft.top_k = params.top_k;
    draft.min_p = params.min_p;
  }
  if (options.penalties) {
    draft.repetition_penalty = params.repetition_penalty;
    draft.presence_penalty = params.presence_penalty;
    draft.frequency_penalty = params.frequency_penalty;
    draft.logit_bias = params.logit_bias;
  }
  if (rule == AcceptanceRule::kRejection && !options.on_device &&
      (draft.top_k <= 0 || draft.top_k > options.candidates_max)) {
    draft.top_k = options.candidates_max;
  }
  return draft;
}

}  // namespace

std::string_view AcceptanceRuleName(AcceptanceRule rule) {
  switch (rule) {
    case AcceptanceRule::kRejection:
      return "rejection";
    case AcceptanceRule::kCoupled:
      return "coupled";
  }
  return "";
}

Result<AcceptanceRule> ParseAcceptanceRule(std::string_view name) {
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    if (name == AcceptanceRuleName(rule)) return rule;
  }
  return InvalidArgument("acceptance rule: want coupled or rejection, got \"{}\"", name);
}

AcceptanceRule DefaultAcceptanceRule(const SamplingParams& params) {
  return params.seed || params.greedy() ? AcceptanceRule::kCoupled : AcceptanceRule::kRejection;
}

DraftBlock::DraftBlock(const SamplingParams& params, AcceptanceRule rule, int vocab_size, int drafts_max,
                       const DraftOptions& options)
    : draft_params_(DraftParams(params, rule, options)),
      rule_(rule),
      on_device_(options.on_device),
      drafts_max_(drafts_max) {
  CHECK(vocab_size > 0 && drafts_max >= 0 && options.candidates_max > 0);
  tokens_.reserve(drafts_max);
  if (on_device_) {
    device_q_.reserve(drafts_max);
    pending_.reserve(drafts_max);
    return;
  }
  q_stride_ = CandidatesMax(draft_params_, rule, on_device_, vocab_size);
  q_sizes_.resize(drafts_max);
  q_tokens_.resize(static_cast<size_t>(drafts_max) * q_stride_);
  q_log_weights_.resize(static_cast<size_t>(drafts_max) * q_stride_);
}

void DraftBlock::Begin(int64_t position) {
  position_ = position;
  ++round_;
  tokens_.clear();
  device_q_.clear();
  pending_.clear();
}

void DraftBlock::AppendPoint(TokenId token) {
  if (on_device_) {
    CheckRoom();
    tokens_.push_back(token);
    device_q_.emplace_back();
    pending_.push_back(nullptr);
    return;
  }
  const double log_weight = 0;
  AppendDrawn(token, {{&token, 1}, {&log_weight, 1}});
}

void DraftBlock::CheckRoom() const {
  CHECK(round_ > 0 && std::ssize(tokens_) < drafts_max_, "draft {} of at most {}", tokens_.size() + 1,
        drafts_max_);
}

void DraftBlock::AppendPending(const TokenId* on_device, const DeviceDistribution& q) {
  CHECK(on_device_ && on_device != nullptr);
  CheckRoom();
  tokens_.push_back(kPendingDraft);
  device_q_.push_back(q);
  pending_.push_back(on_device);
}

void DraftBlock::Settle(int k, TokenId token) {
  CHECK(k >= 0 && k < std::ssize(pending_) && pending_[k] != nullptr && token >= 0);
  tokens_[k] = token;
  pending_[k] = nullptr;
}

void DraftBlock::AppendDrawn(TokenId token, const Distribution& q) {
  CHECK(!on_device_);
  CheckRoom();
  const size_t k = tokens_.size();
  if (rule_ == AcceptanceRule::kCoupled) {
    q_sizes_[k] = 1;
    q_tokens_[k] = token;
    q_log_weights_[k] = 0;
  } else {
    CHECK(std::ssize(q.tokens) <= q_stride_, "q has {} candidates, want at most {}", q.tokens.size(),
          q_stride_);
    q_sizes_[k] = static_cast<int>(q.tokens.size());
    std::copy(q.tokens.begin(), q.tokens.end(), q_tokens_.begin() + k * q_stride_);
    std::copy(q.log_weights.begin(), q.log_weights.end(), q_log_weights_.begin() + k * q_stride_);
  }
  tokens_.push_back(token);
}

const DeviceDistribution& DraftBlock::device_q(int k) const {
  CHECK(on_device_ && k >= 0 && k < std::ssize(device_q_));
  return device_q_[k];
}

RandomKey DraftKey(const Sampler& sampler, const DraftBlock& block, int k) {
  return block.rule() == AcceptanceRule::kCoupled
             ? sampler.Key(block.position() + k, RandomStream::kCoupled, 0)
             : sampler.Key(block.position() + k, RandomStream::kDraft, block.round());
}

Distribution DraftBlock::q(int k) const {
  CHECK(!on_device_);
  CHECK(k >= 0 && k < std::ssize(tokens_));
  const size_t place = static_cast<size_t>(k) * q_stride_;
  const size_t size = q_sizes_[k];
  return {{q_tokens_.data() + place, size}, {q_log_weights_.data() + place, size}};
}

}  // namespace foresight
