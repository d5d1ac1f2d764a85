// What the indexer's kernels need of its arguments, by value.
#pragma once

#include "kernels/kernel_context.h"

namespace foresight::cuda {

struct Indexing {
  static constexpr int kRatio = 4;

  const SequenceRows* sequences;
  int num_sequences;
  int heads;
  int rope_dim;
  int topk;
  bool faithful;
  IndexKeyLayout key;
  float factor;
  float* iq;
  const float* w;
  const float* cos;
  const float* sin;
  int32_t* picks;
  // The rows of this turn: [first_row, first_row + turn_rows) of the step.
  int first_row;
  int turn_rows;
  // As IndexScores has them, of this turn's rows.
  float* scores;
  float* maxima;
  int64_t stride;

  // The number of entries that the row sees.
  __device__ int Visible(const SequenceRows& sequence, int row) const {
    return static_cast<int>((sequence.first_position + row - sequence.first_row + 1) / kRatio);
  }
};

}  // namespace foresight::cuda
