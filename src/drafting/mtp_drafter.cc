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
  device_results_.resize(static_cast<size_t>(2 * slots_max) * drafts_max);
  by_depth_.reserve(slots_max);
  placed_.reserve(slots_max);
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
  const SampledDrafts drawn = model_.SampleDrafts(device_draws_, device_sequences_, keep_distributions,
                                                  std::span(device_results_).first(2 * count));
  RETURN_IF_ERROR(model_.device().Synchronize());
  RETURN_IF_ERROR(speculators_.DraftAll(host_draws_));
  for (size_t i = 0; i < count; ++i) {
    if (device_results_[i] != 0) return UndrawableDraft(k);
    DeviceDistribution q;
    if (KeepsDistribution(*device_blocks_[i])) {
      q = {.logits = device_draws_[i].logits, .statistics = drawn.statistics + i};
    }
    device_blocks_[i]->AppendPending(drawn.tokens + i, q);
    device_blocks_[i]->Settle(k, device_results_[count + i]);
  }
  return Status();
}

Status MtpDrafter::ProposeOnDevice(std::span<DraftRound> rounds) {
  chain_.clear();
  for (DraftRound& round : rounds) {
    if (last_[round.slot].stream_row >= 0) by_depth_.push_back(&round);
  }
  // Those that go on are the first ones at every position, as the tokens of the position before lie.
  std::sort(by_depth_.begin(), by_depth_.end(), [](const DraftRound* a, const DraftRound* b) {
    return std::pair(-a->depth, a->slot) < std::pair(-b->depth, b->slot);
  });
  for (const DraftRound* round : by_depth_) chain_.push_back(last_[round->slot]);
  const size_t stride = 2 * by_depth_.size();
  logits_.Reset(first_);
  placed_.clear();
  int k = 0;
  for (size_t count = DeeperThan(k); count > 0; count = DeeperThan(++k)) {
    if (k > 0) {
      tokens_.assign(count, 0);
      placed_.resize(count);
      chunks_.clear();
      stream_rows_.clear();
      logit_rows_.clear();
      for (size_t i = 0; i < count; ++i) {
        chunks_.push_back({.sequence = by_depth_[i]->state, .num_rows = 1});
        stream_rows_.push_back(chain_[i].stream_row);
        const auto row = static_cast<int32_t>(i);
        chain_[i] = {.stream_row = row, .logit_row = row};
        logit_rows_.push_back(row);
      }
      ASSIGN_OR_RETURN(const StepOutputs out, model_.MtpStep({.tokens = tokens_,
                                                              .chunks = chunks_,
                                                              .logit_rows = logit_rows_,
                                                              .keep_logits = true,
                                                              .placed = placed_},
                                                             stream_rows_, StreamSource::kMtpStep));
      logits_.Reset(out);
    }
    device_draws_.clear();
    device_sequences_.clear();
    bool keep_distributions = false;
    for (size_t i = 0; i < count; ++i) {
      const DraftRound& round = *by_depth_[i];
      SampleRow draw = DeviceDraw(round.block->draft_params(), DraftKey(*round.sampler, *round.block, k));
      draw.logits = logits_.OnDevice(chain_[i].logit_row);
      draw.sequence = static_cast<int32_t>(i);
      device_draws_.push_back(draw);
      device_sequences_.push_back({.first_row = static_cast<int32_t>(i)});
      keep_distributions |= KeepsDistribution(*round.block);
    }
    const SampledDrafts drawn =
        model_.SampleDrafts(device_draws_, device_sequences_, keep_distributions,
                            std::span(device_results_).subspan(k * stride, 2 * count));
    placed_.clear();
    for (size_t i = 0; i < count; ++i) {
      DeviceDistribution q;
      if (KeepsDistribution(*by_depth_[i]->block)) {
        q = {.logits = device_draws_[i].logits, .statistics = drawn.statistics + i};
      }
      by_depth_[i]->block->AppendPending(drawn.tokens + i, q);
      placed_.push_back({.token = drawn.tokens + i, .row = static_cast<int32_t>(i)});
    }
  }
  return Status();
}

size_t MtpDrafter::DeeperThan(int k) const {
  return static_cast<size_t>(std::count_if(by_depth_.begin(), by_depth_.end(),
                                           [k](const DraftRound* round) { return round->depth > k; }));
}

Status MtpDrafter::Settle() {
  const size_t stride = 2 * by_depth_.size();
  int k = 0;
  for (size_t count = DeeperThan(k); count > 0; count = DeeperThan(++k)) {
    const std::span<const int32_t> results = std::span(device_results_).subspan(k * stride, 2 * count);
    for (size_t i = 0; i < count; ++i) {
      if (results[i] != 0) return UndrawableDraft(k);
      by_depth_[i]->block->Settle(k, results[count + i]);
    }
  }
  by_depth_.clear();
  return Status();
}

Status MtpDrafter::Propose(std::span<DraftRound> rounds) {
  by_depth_.clear();
  // One of the host's makes the chain come back to it at every position.
  if (std::all_of(rounds.begin(), rounds.end(), [](const DraftRound& r) { return r.block->on_device(); })) {
    return ProposeOnDevice(rounds);
  }
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
