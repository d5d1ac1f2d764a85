// Which drafts a step verifies, decided where they are drawn, without the host in between: as many as the
// host has said before there were any, the likeliest to be reached and accepted (dspark.md 5.3). What hangs
// on it is made here as well: the rows of the step, and those of its draws.
#pragma once

#include <span>

#include "base/confidence.h"
#include "base/ids.h"
#include "kernels/kernel_context.h"
#include "kernels/sampling/sampling.h"

namespace foresight {

// Of a step that is planned so.
inline constexpr int kPlannedSequencesMax = 1024;
inline constexpr int kPlannedDraftsMax = 4096;  // sequences * drafts_max

// A sequence of the step: its rows that are known, then as many of its drafts as are verified.
struct PlannedSequence {
  int32_t first_known = 0;  // its known rows among those of all sequences
  int32_t known_rows = 0;   // 1 or more
  int32_t has_logits =
      0;  // the last known row wants logits, and so do the drafts behind it; else none follow
  int32_t num_drafts = 0;   // that there are
  int32_t first_scale = 0;  // theirs among all scales
  int32_t stride = 0;       // from one draft to the next in what follows
  const TokenId* tokens = nullptr;
  const float* logits = nullptr;   // of the confidence head
  const float* margins = nullptr;  // null: zeros
};

// The drafts in the order of their survivals, the products of the confidences up to them: the largest first,
// as float32; equal ones the lower j, then the lower sequence first. NaN is 0. The first K are verified,
// which are the first ones of each sequence, since survivals don't rise.
//
// Shapes   sequences [S] · scales [drafts] · known_tokens [known rows] · verified [D]
//          rows of the step, each sequence's one after the other, then copies of the last one: tokens [T],
//          positions [T] · logit_rows [R], the last one repeated, or 0 .. R - 1 with `heads_all`
//          views [L, P], P at least S: first_row and num_rows of the first S are set, the rest is there
// Numerics survivals in float64 from float32 confidences: to the bit those of speculative/frontier.h
// Aliasing known_tokens overlaps no output.
struct PlanDraftsArgs {
  int count = 0;       // K, in all: at most as many as there are
  int drafts_max = 0;  // of a sequence
  std::span<const PlannedSequence> sequences;
  const ConfidenceScale* scales = nullptr;
  const TokenId* known_tokens = nullptr;
  int rows = 0;             // T, at least known rows + K
  int num_logits = 0;       // R, at least D + K
  bool heads_all = false;   // each row has logits
  int layers = 0;           // L
  int64_t layer_views = 0;  // P
  SequenceRows* views = nullptr;
  TokenId* tokens = nullptr;
  int64_t* positions = nullptr;
  int32_t* logit_rows = nullptr;
  int32_t* verified = nullptr;  // drafts of the D sequences with logits
};

// Sample's arguments for such a step, of rows that were made for all drafts: those of verified drafts move
// together, the rest goes.
//
// Shapes   sequences [D], with all drafts · rows [their rows] · drafts [their rows]: where drafted tokens
// lie,
//          null: in the row · verified [D] · logits [D + K, V] of the step
//          placed_rows [D + K] · placed_sequences [D] · told [D]: verified once more
struct PlaceDrawsArgs {
  int vocab_size = 0;  // V
  int num_rows = 0;    // D + K
  std::span<const SampleSequence> sequences;
  const SampleRow* rows = nullptr;
  const TokenId* const* drafts = nullptr;
  const int32_t* verified = nullptr;
  const float* logits = nullptr;
  SampleRow* placed_rows = nullptr;
  SampleSequence* placed_sequences = nullptr;
  int32_t* told = nullptr;
};

void PlanDraftsRef(const KernelContext& ctx, const PlanDraftsArgs& args);
void PlaceDrawsRef(const KernelContext& ctx, const PlaceDrawsArgs& args);

}  // namespace foresight
