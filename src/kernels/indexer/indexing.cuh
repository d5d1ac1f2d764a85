// What the indexer's kernels need of its arguments, by value.
#pragma once

#include "kernels/indexer/indexer_parts.h"
#include "kernels/kernel_context.h"

namespace foresight::cuda {

constexpr int kMaximumOf = IndexScores::kMaximumOf;

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

  // The number of entries that the row sees; padding behind the last sequence, those of the last row.
  __device__ int Visible(const SequenceRows& sequence, int row) const {
    const int i = min(row - sequence.first_row, sequence.num_rows - 1);
    return static_cast<int>((sequence.first_position + i + 1) / kRatio);
  }
};

constexpr uint32_t kLeastOrdered = 0x007fffff;  // minus infinity's

// Orders as the scores do; -0 is +0.
__device__ inline uint32_t OrderedBits(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int>(bits) >> 31) | 0x80000000);
}
__device__ inline float FromOrderedBits(uint32_t ordered) {
  return __uint_as_float(ordered & 0x80000000 ? ordered ^ 0x80000000 : ~max(ordered, kLeastOrdered));
}

// The largest of the warp's scores, those that are no number left out.
__device__ inline float LargestOfWarp(float score) {
  return FromOrderedBits(__reduce_max_sync(0xffffffff, OrderedBits(fmaxf(score, -INFINITY))));
}

}  // namespace foresight::cuda
