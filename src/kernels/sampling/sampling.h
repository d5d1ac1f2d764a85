// Tokens from logits that lie on the device: the draws of rows, and the verdicts on drafts (dspark.md 3).
//
// The same law, random numbers and ties as those of the host, sampling/distribution.h and
// speculative/acceptance.h, for what needs no counts: temperature, min_p, top_k and top_p.
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>

#include "kernels/kernel_context.h"

namespace foresight {

// The least token that top_k and top_p leave of a row: kept are larger logits, and equal ones up to its id.
// By default all are.
struct RowCut {
  float logit = -INFINITY;
  int32_t token = INT32_MAX;
};

// What makes probabilities of a row: weight of token v is exp(w), w = (logit - largest) *
// inverse_temperature, and its probability exp(w - log_normalizer), unless it is cut.
struct RowStatistics {
  double log_normalizer = 0;
  float largest = 0;
  RowCut cut;
};

// A row of the target's logits: what it draws with, and the draft that it judges.
struct SampleRow {
  const float* logits = nullptr;        // [V] f32, -inf masks a token
  double inverse_temperature = 0;       // 0: the largest logit, the lowest id among equal ones
  double lowest_log_weight = -DBL_MAX;  // min_p: tokens below it are masked
  uint64_t noise = 0;                   // RandomSequence::state of the row's draw
  int32_t sequence = 0;
  int32_t draft = 0;  // the drafted token; none behind the last draft
  // By rejection: what the draft was drawn from, with temperature, min_p and cuts of this row. Null: the
  // draft was chosen, a point mass.
  const float* draft_logits = nullptr;
  const RowStatistics* draft_statistics = nullptr;
  double acceptance_noise = 0;         // uniform in (0, 1)
  double acceptance_probability = -1;  // given, instead of p / q, unless negative
  double top_p = 1;                    // of what top_k leaves; 1: all, as without a temperature
  int32_t top_k = 0;                   // of what min_p leaves; 0: all, as without a temperature
};

// The rows of a sequence: first_row .. first_row + num_drafts.
struct SampleSequence {
  int32_t first_row = 0;
  int32_t num_drafts = 0;  // 0: nothing but a draw
  int32_t by_rejection = 0;
};

// What `accepted` says when a row that is looked at can't be drawn from: NaN or +inf among its logits, or
// everything is masked.
inline constexpr int32_t kSampleError = -1;

// A draw is argmax over the tokens of w + Gumbel noise of (row, token), the lowest id among equal sums.
//
//   not by rejection   row k draws; draft k is accepted while it is what row k drew; the token is the first
//                      draw that is no accepted draft
//   by rejection       draft k is accepted while u_k q_k(draft) < p_k(draft), u_k the acceptance noise, or
//                      u_k < acceptance_probability; the token is drawn by the row behind the accepted
//                      drafts: from normalise(max(p - q, 0)) where it has rejected one, from p where all are
//                      accepted, and where nothing is left of p - q. Rows of inverse_temperature 0 need the
//                      probability to be given.
//
// Cuts go by the order of logits, the largest first, equal ones by ascending id: top_k keeps the first k of
// what min_p leaves; top_p, of what is left by then, the shortest beginning whose weights reach top_p times
// the sum of all.
//
// Shapes   rows [R] · sequences [S], whose rows are all rows, in order · accepted [S] i32 · tokens [S] i32,
//          0 with an error · statistics [R] or null
// Numerics float64 behind the logits, in both numerics; sums that decide on top_p within 2^-40; a sequence's
//          result depends on its own rows alone, statistics to the bit.
struct SampleArgs {
  int num_rows = 0;
  int num_sequences = 0;
  int vocab_size = 0;  // V
  // Whether any sequence is by rejection, or statistics are wanted: they take a pass of their own.
  bool normalize = false;
  bool has_min_p = false;  // whether any row has it
  bool has_cuts = false;   // whether any row has top_k or top_p: a pass of their own as well
  const SampleRow* rows = nullptr;
  const SampleSequence* sequences = nullptr;
  int32_t* accepted = nullptr;
  int32_t* tokens = nullptr;
  RowStatistics* statistics = nullptr;  // with `normalize`
};

void SampleRef(const KernelContext& ctx, const SampleArgs& args);

}  // namespace foresight
