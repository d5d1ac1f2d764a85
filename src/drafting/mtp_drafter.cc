#include "drafting/mtp_drafter.h"

#include <algorithm>

namespace foresight {

MtpDrafter::MtpDrafter(int drafts_max, int slots_max, Model& model, SpeculatorTeam& speculators)
    : drafts_max_(drafts_max), model_(model), speculators_(speculators), last_(slots_max) {
  tokens_.reserve(model.max_step_rows());
  stream_rows_.reserve(model.max_step_rows());
  logit_rows_.reserve(slots_max);
  chunks_.reserve(slots_max);
  chain_.reserve(slots_max);
  draws_.reserve(slots_max);
}

void MtpDrafter::Begin(int slot, std::span<const TokenId>, int64_t) {
  last_[slot] = {};
}

Status MtpDrafter::Observe(std::span<const ObservedRows> rows) {
  tokens_.clear();
  chunks_.clear();
  stream_rows_.clear();
  logit_rows_.clear();
  std::fill(last_.begin(), last_.end(), Last{});
  for (const ObservedRows& r : rows) {
    // Row p needs token p + 1; drafts of the last round are taken back.
    const int64_t first = r.state->length() - r.rows;
    RETURN_IF_ERROR(r.state->TruncateDraft(std::min(r.state->draft_length(), first)));
    CHECK(r.state->draft_length() == first, "MTP-1 has seen {} of {} tokens", r.state->draft_length(), first);
    const int64_t known = std::min<int64_t>(r.rows, std::ssize(r.tokens) - 1 - first);
    if (known <= 0) continue;
    for (int64_t i = 0; i < known; ++i) {
      tokens_.push_back(r.tokens[first + i + 1]);
      stream_rows_.push_back(static_cast<int32_t>(r.first_row + i));
    }
    chunks_.push_back({.sequence = r.state, .num_rows = static_cast<int>(known)});
    if (!r.drafts_next) continue;
    const int row = static_cast<int>(tokens_.size()) - 1;
    last_[r.slot] = {.stream_row = row, .logit_row = static_cast<int>(logit_rows_.size())};
    logit_rows_.push_back(row);
  }
  if (tokens_.empty()) return Status();
  ASSIGN_OR_RETURN(const StepOutputs out,
                   model_.MtpStep({.tokens = tokens_, .chunks = chunks_, .logit_rows = logit_rows_},
                                  stream_rows_, StreamSource::kStep));
  logits_ = out.logits;
  return Status();
}

Status MtpDrafter::Propose(std::span<DraftRound> rounds) {
  const int64_t vocab_size = model_.config().vocab_size;
  chain_.clear();
  for (const DraftRound& round : rounds) chain_.push_back(last_[round.slot]);
  std::span<const float> logits = logits_;
  for (int k = 0;; ++k) {
    const auto drafts = [&](size_t r) { return chain_[r].stream_row >= 0 && k < rounds[r].depth; };
    draws_.clear();
    for (size_t r = 0; r < rounds.size(); ++r) {
      if (!drafts(r)) continue;
      draws_.push_back({.logits = logits.subspan(chain_[r].logit_row * vocab_size, vocab_size),
                        .sampler = rounds[r].sampler,
                        .block = rounds[r].block});
    }
    RETURN_IF_ERROR(speculators_.DraftAll(draws_));
    tokens_.clear();
    chunks_.clear();
    stream_rows_.clear();
    logit_rows_.clear();
    size_t drawn = 0;
    for (size_t r = 0; r < rounds.size(); ++r) {
      if (!drafts(r)) continue;
      const TokenId token = draws_[drawn++].token;
      if (k + 1 >= rounds[r].depth) continue;
      Last& last = chain_[r];
      tokens_.push_back(token);
      chunks_.push_back({.sequence = rounds[r].state, .num_rows = 1});
      stream_rows_.push_back(last.stream_row);
      const int row = static_cast<int>(logit_rows_.size());
      last = {.stream_row = row, .logit_row = row};
      logit_rows_.push_back(row);
    }
    if (tokens_.empty()) return Status();
    ASSIGN_OR_RETURN(const StepOutputs out,
                     model_.MtpStep({.tokens = tokens_, .chunks = chunks_, .logit_rows = logit_rows_},
                                    stream_rows_, StreamSource::kMtpStep));
    logits = out.logits;
  }
}

}  // namespace foresight
