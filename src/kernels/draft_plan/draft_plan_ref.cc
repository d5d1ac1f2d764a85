#include <algorithm>
#include <numeric>

#include "kernels/draft_plan/draft_plan.h"

namespace foresight {
namespace {

// The draft of a sequence that would be verified next.
struct NextDraft {
  int j = 0;  // as many are verified
  double survival = 0;

  bool Precedes(const NextDraft& other) const {
    const auto mine = static_cast<float>(survival);
    const auto its = static_cast<float>(other.survival);
    return mine != its ? mine > its : j < other.j;
  }
};

float ConfidenceOf(const PlanDraftsArgs& args, const PlannedSequence& s, int j) {
  const int64_t place = int64_t{j} * s.stride;
  const DraftEvidence evidence = {.logit = s.logits[place],
                                  .margin = s.margins == nullptr ? 0 : s.margins[place]};
  return static_cast<float>(args.scales[s.first_scale + j].Confidence(evidence));
}

void ShowNext(const PlanDraftsArgs& args, const PlannedSequence& s, double survival, NextDraft& next) {
  if (next.j == s.num_drafts) return;
  next.survival = survival * double{ConfidenceOf(args, s, next.j)};
  if (!(next.survival > 0)) next.survival = 0;
}

}  // namespace

void PlanDraftsRef(const KernelContext& ctx, const PlanDraftsArgs& args) {
  ArenaScope scope(*ctx.scratch);
  const size_t num_sequences = args.sequences.size();
  NextDraft* const next = ctx.scratch->Allocate<NextDraft>(static_cast<int64_t>(num_sequences));
  for (size_t r = 0; r < num_sequences; ++r) {
    next[r] = {};
    ShowNext(args, args.sequences[r], /*survival=*/1, next[r]);
  }
  for (int k = 0; k < args.count; ++k) {
    NextDraft* first = nullptr;
    for (size_t r = 0; r < num_sequences; ++r) {
      if (next[r].j == args.sequences[r].num_drafts) continue;
      if (first == nullptr || next[r].Precedes(*first)) first = &next[r];
    }
    ++first->j;
    ShowNext(args, args.sequences[first - next], first->survival, *first);
  }

  int row = 0;
  int logit = 0;
  int32_t* verified = args.verified;
  for (size_t r = 0; r < num_sequences; ++r) {
    const PlannedSequence& s = args.sequences[r];
    const int num_rows = s.known_rows + next[r].j;
    for (int layer = 0; layer < args.layers; ++layer) {
      SequenceRows& view = args.views[layer * args.layer_views + static_cast<int64_t>(r)];
      view.first_row = row;
      view.num_rows = num_rows;
    }
    if (s.has_logits != 0) {
      std::iota(args.logit_rows + logit, args.logit_rows + logit + next[r].j + 1, row + s.known_rows - 1);
      logit += next[r].j + 1;
      *verified++ = next[r].j;
    }
    for (int i = 0; i < num_rows; ++i, ++row) {
      args.tokens[row] = i < s.known_rows ? args.known_tokens[s.first_known + i]
                                          : s.tokens[int64_t{i - s.known_rows} * s.stride];
      args.positions[row] = args.views[r].first_position + i;
    }
  }
  std::fill(args.tokens + row, args.tokens + args.rows, args.tokens[row - 1]);
  std::fill(args.positions + row, args.positions + args.rows, args.positions[row - 1]);
  if (args.heads_all) {
    std::iota(args.logit_rows, args.logit_rows + args.num_logits, 0);
  } else {
    std::fill(args.logit_rows + logit, args.logit_rows + args.num_logits, args.logit_rows[logit - 1]);
  }
}

void PlaceDrawsRef(const KernelContext&, const PlaceDrawsArgs& args) {
  int row = 0;
  for (size_t s = 0; s < args.sequences.size(); ++s) {
    const int verified = args.told[s] = args.verified[s];
    args.placed_sequences[s] = args.sequences[s];
    args.placed_sequences[s].first_row = row;
    args.placed_sequences[s].num_drafts = verified;
    for (int k = 0; k <= verified; ++k, ++row) {
      const int from = args.sequences[s].first_row + k;
      SampleRow& placed = args.placed_rows[row] = args.rows[from];
      placed.logits = args.logits + int64_t{row} * args.vocab_size;
      if (args.drafts[from] != nullptr) placed.draft = *args.drafts[from];
    }
  }
}

}  // namespace foresight
