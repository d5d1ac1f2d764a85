#include "drawing/token_draws.h"

#include "drawing/device_draws.h"

namespace foresight {

TokenDraws::TokenDraws(Model& model, ThreadPool& pool, int sequences_max, int rows_max,
                       SpeculatorTeam* speculators, Chance* chance)
    : model_(model), pool_(pool), speculators_(speculators), chance_(chance), logits_(model) {
  parts_.resize(sequences_max);
  rows_.reserve(rows_max);
  pending_.reserve(rows_max);
  device_sequences_.reserve(sequences_max);
  results_.resize(3 * sequences_max);
  taken_.reserve(rows_max);
  host_sequences_.reserve(sequences_max);
  positions_.reserve(sequences_max);
  drawn_.resize(sequences_max);
  draw_errors_.resize(sequences_max);
}

Status TokenDraws::Begin(const StepOutputs& outputs, std::span<const DrawingSequence> sequences,
                         int planned) {
  logits_.Reset(outputs);
  sequences_ = sequences;
  rows_.clear();
  pending_.clear();
  device_sequences_.clear();
  normalize_ = false;
  host_sequences_.clear();
  positions_.clear();
  verified_ = {};
  int row = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const DrawingSequence& s = sequences[i];
    Part& part = parts_[i];
    part.on_device = IsDrawnByDevice(s.sampler->params(), model_.device());
    part.first_row = row;
    part.num_drafts = s.num_drafts;
    row += s.num_drafts + 1;
    if (part.on_device) {
      part.place = static_cast<int>(device_sequences_.size());
      AddRows(s, planned > 0 ? -1 : part.first_row);
    } else {
      CHECK(planned == 0, "the host draws in a step that the device plans");
      part.place = static_cast<int>(host_sequences_.size());
      host_sequences_.push_back({.logits = logits_.Fetch(part.first_row, s.num_drafts + 1),
                                 .num_drafts = s.num_drafts,
                                 .sampler = s.sampler,
                                 .block = s.block});
      positions_.push_back(s.position);
    }
  }
  const size_t count = device_sequences_.size();
  model_.Sample({.rows = rows_,
                 .sequences = device_sequences_,
                 .drafts = pending_,
                 .normalize = normalize_,
                 .planned = planned > 0 ? &outputs : nullptr,
                 .num_verified = planned},
                std::span(results_).first((planned > 0 ? 3 : 2) * count));
  RETURN_IF_ERROR(model_.device().Synchronize());
  if (planned > 0) {
    verified_ = std::span(results_).subspan(2 * count, count);
    FollowPlan();
  }
  return Status();
}

void TokenDraws::FollowPlan() {
  int row = 0;
  for (size_t i = 0; i < verified_.size(); ++i) {
    parts_[i].first_row = row;
    parts_[i].num_drafts = verified_[i];
    row += verified_[i] + 1;
  }
}

void TokenDraws::AddRows(const DrawingSequence& s, int first_row) {
  const SamplingParams& params = s.sampler->params();
  SampleSequence sequence = {.first_row = static_cast<int32_t>(rows_.size()), .num_drafts = s.num_drafts};
  const bool rejection = s.block != nullptr && s.block->rule() == AcceptanceRule::kRejection;
  for (int k = 0; k <= s.num_drafts; ++k) {
    const int64_t position = s.position + k;
    SampleRow row = DeviceDraw(params, s.sampler->Key(position, RandomStream::kCoupled, 0));
    if (first_row >= 0) row.logits = logits_.OnDevice(first_row + k);
    row.sequence = static_cast<int32_t>(device_sequences_.size());
    if (k < s.num_drafts) {
      row.draft = s.block->tokens()[k];
      if (const TokenId* pending = s.block->pending(k)) {
        pending_.push_back({.token = pending, .row = static_cast<int32_t>(rows_.size())});
      }
      if (rejection) {
        const RandomKey accept = s.sampler->Key(position, RandomStream::kAccept, s.block->round());
        row.acceptance_noise = RandomSequence(accept).Uniform(0);
        if (const auto given = chance_->GivenProbability(accept)) row.acceptance_probability = *given;
        const DeviceDistribution& q = s.block->device_q(k);
        row.draft_logits = q.logits;
        row.draft_statistics = q.statistics;
        // A point mass accepts what it is, by whichever rule.
        sequence.by_rejection |= !params.greedy() || row.acceptance_probability >= 0 ? 1 : 0;
      }
    }
    rows_.push_back(row);
  }
  normalize_ |= sequence.by_rejection != 0;
  device_sequences_.push_back(sequence);
}

void TokenDraws::DrawOnHost() {
  if (speculators_ != nullptr) return speculators_->VerifyAll(host_sequences_);
  // A draw goes through the whole vocabulary; those of different sequences share nothing.
  pool_.ParallelFor(std::ssize(host_sequences_), [&](int64_t i, int) {
    const Verification& s = host_sequences_[i];
    const Result<SampledToken> token = s.sampler->Sample(s.logits, positions_[i]);
    draw_errors_[i] = token.status();
    if (token.ok()) drawn_[i] = *token;
  });
}

Result<VerifiedTokens> TokenDraws::Take(int i) {
  const Part& part = parts_[i];
  if (part.on_device) return TakeOfDevice(i);
  if (speculators_ != nullptr) return speculators_->verdict(part.place);
  RETURN_IF_ERROR(draw_errors_[part.place]);
  return VerifiedTokens{.accepted = 0, .tokens = {&drawn_[part.place], 1}};
}

Result<VerifiedTokens> TokenDraws::TakeOfDevice(int i) {
  const DrawingSequence& s = sequences_[i];
  const Part& part = parts_[i];
  const int accepted = results_[part.place];
  if (accepted == kSampleError) {  // the host says what is wrong with which token
    const std::span<const float> logits = logits_.Fetch(part.first_row, part.num_drafts + 1);
    RETURN_IF_ERROR(model_.device().Synchronize());
    const size_t vocab_size = static_cast<size_t>(model_.config().vocab_size);
    for (int k = 0; k <= part.num_drafts; ++k) {
      RETURN_IF_ERROR(s.sampler->Process(logits.subspan(k * vocab_size, vocab_size)).status());
    }
    return Error(StatusCode::kInternal, "logits: the device can't draw from what the host can");
  }
  taken_.clear();
  taken_.resize(accepted + 1);
  for (int k = 0; k < accepted; ++k) taken_[k].token = s.block->tokens()[k];
  taken_[accepted].token = results_[device_sequences_.size() + part.place];
  return VerifiedTokens{.accepted = accepted, .tokens = taken_};
}

}  // namespace foresight
