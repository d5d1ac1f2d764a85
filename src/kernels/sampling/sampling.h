// Tokens from logits that lie on the device: the draws of rows, and the verdicts on drafts (dspark.md 3).
//
// The same law, random numbers and ties as those of the host, sampling/distribution.h and
// speculative/acceptance.h, for what needs no order of the vocabulary and no counts: temperature and min_p.
#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/kernel_context.h"

namespace foresight {

// What normalises a row: weight of token v is exp(w), w = (logit - largest) * inverse_temperature, and its
// probability exp(w - log_normalizer).
struct RowStatistics {
  double log_normalizer = 0;
  float largest = 0;
};

// A row of the target's logits: what it draws with, and the draft that it judges.
struct SampleRow {
  const float* logits = nullptr;        // [V] f32, -inf masks a token
  double inverse_temperature = 0;       // 0: the largest logit, the lowest id among equal ones
  double lowest_log_weight = -DBL_MAX;  // min_p: tokens below it are masked
  uint64_t noise = 0;                   // RandomSequence::state of the row's draw
  int32_t sequence = 0;
  int32_t draft = 0;  // the drafted token; none behind the last draft
  // By rejection: what the draft was drawn from, with temperature and min_p of this row. Null: the draft was
  // chosen, a point mass.
  const float* draft_logits = nullptr;
  const RowStatistics* draft_statistics = nullptr;
  double acceptance_noise = 0;         // uniform in (0, 1)
  double acceptance_probability = -1;  // given, instead of p / q, unless negative
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
// Shapes   rows [R] · sequences [S], whose rows are all rows, in order · accepted [S] i32 · tokens [S] i32,
//          0 with an error · statistics [R] or null
// Numerics float64 behind the logits, in both numerics; a sequence's result depends on its own rows alone,
//          statistics to the bit.
struct SampleArgs {
  int num_rows = 0;
  int num_sequences = 0;
  int vocab_size = 0;  // V
  // Whether any sequence is by rejection, or statistics are wanted: they take a pass of their own.
  bool normalize = false;
  bool has_min_p = false;  // whether any row has a lowest_log_weight
  const SampleRow* rows = nullptr;
  const SampleSequence* sequences = nullptr;
  int32_t* accepted = nullptr;
  int32_t* tokens = nullptr;
  RowStatistics* statistics = nullptr;  // with `normalize`
};

void SampleRef(const KernelContext& ctx, const SampleArgs& args);

}  // namespace foresight
