#include "drafting/mtp_drafter.h"

#include <algorithm>

#include "drawing/device_draws.h"

namespace foresight {

MtpDrafter::MtpDrafter(int drafts_max, int slots_max, Model& model, SpeculatorTeam& speculators)
    : drafts_max_(drafts_max), model_(model), speculators_(speculators), last_(slots_max), logits_(model) {
  tokens_.reserve(model.max_step_rows());
  stream_rows_.reserve(model.max_step_rows());
  logit_rows_.reserve(slots_max);
  chunks_.reserve(slots_max);
  chain_.reserve(slots_max);
  host_draws_.reserve(slots_max);
  device_draws_.reserve(slots_max);
  device_sequences_.reserve(slots_max);
  device_blocks_.reserve(slots_max);
  device_results_.resize(2 * slots_max);
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
  ASSIGN_OR_RETURN(
      const StepOutputs out,
      model_.MtpStep({.tokens = tokens_, .chunks = chunks_, .logit_rows = logit_rows_, .keep_logits = true},
                     stream_rows_, StreamSource::kStep));
  first_ = out;
  return Status();
}

Status MtpDrafter::Draw(std::span<DraftRound> rounds, int k) {
  host_draws_.clear();
  device_draws_.clear();
  device_sequences_.clear();
  device_blocks_.clear();
  bool keep_distributions = false;
  for (size_t r = 0; r < rounds.size(); ++r) {
    const DraftRound& round = rounds[r];
    if (!Drafts(round, chain_[r], k)) continue;
    if (!round.block->on_device()) {
      host_draws_.push_back(
          {.logits = logits_.Fetch(chain_[r].logit_row, 1), .sampler = round.sampler, .block = round.block});
      continue;
    }
    const auto i = static_cast<int32_t>(device_draws_.size());
    SampleRow draw = DeviceDraw(round.block->draft_params(), DraftKey(*round.sampler, *round.block, k));
    draw.logits = logits_.OnDevice(chain_[r].logit_row);
    draw.sequence = i;
    device_draws_.push_back(draw);
    device_sequences_.push_back({.first_row = i});
    device_blocks_.push_back(round.block);
    keep_distributions |= KeepsDistribution(*round.block);
  }
  const size_t count = device_draws_.size();
  const RowStatistics* const statistics =
      model_.Sample(device_draws_, device_sequences_, keep_distributions,
                    std::span(device_results_).first(2 * count), keep_distributions);
  RETURN_IF_ERROR(model_.device().Synchronize());
  RETURN_IF_ERROR(speculators_.DraftAll(host_draws_));
  for (size_t i = 0; i < count; ++i) {
    if (device_results_[i] != 0) return UndrawableDraft(k);
    DeviceDistribution q;
    if (KeepsDistribution(*device_blocks_[i])) {
      q = {.logits = device_draws_[i].logits, .statistics = statistics + i};
    }
    device_blocks_[i]->AppendDrawn(device_results_[count + i], q);
  }
  return Status();
}

Status MtpDrafter::Propose(std::span<DraftRound> rounds) {
  chain_.clear();
  for (const DraftRound& round : rounds) chain_.push_back(last_[round.slot]);
  logits_.Reset(first_);
  for (int k = 0;; ++k) {
    RETURN_IF_ERROR(Draw(rounds, k));
    tokens_.clear();
    chunks_.clear();
    stream_rows_.clear();
    logit_rows_.clear();
    for (size_t r = 0; r < rounds.size(); ++r) {
      const DraftRound& round = rounds[r];
      Last& last = chain_[r];
      if (!Drafts(round, last, k + 1)) continue;
      tokens_.push_back(round.block->tokens()[k]);
      chunks_.push_back({.sequence = round.state, .num_rows = 1});
      stream_rows_.push_back(last.stream_row);
      const int row = static_cast<int>(logit_rows_.size());
      last = {.stream_row = row, .logit_row = row};
      logit_rows_.push_back(row);
    }
    if (tokens_.empty()) return Status();
    ASSIGN_OR_RETURN(
        const StepOutputs out,
        model_.MtpStep({.tokens = tokens_, .chunks = chunks_, .logit_rows = logit_rows_, .keep_logits = true},
                       stream_rows_, StreamSource::kMtpStep));
    logits_.Reset(out);
  }
}

}  // namespace foresight
