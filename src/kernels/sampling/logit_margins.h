// How far the likeliest token of a draft stands out: what a confidence of greedy drafts reads beside its head
// (speculative/calibration.h).
#pragma once

#include <span>

#include "kernels/kernel_context.h"

namespace foresight {

// Nothing is gained by knowing more.
inline constexpr float kLogitMarginMax = 16;

// out[r] = min(largest - second largest, kLogitMarginMax) of the row's values, 0 where they are equal, and
// kLogitMarginMax where there is no second one above -inf. Rows with NaN or +inf have any value: they can't
// be drawn from either.
//
// Shapes   logits [R, V] f32 · out [R] f32
// Numerics exact to the bit
struct LogitMarginsArgs {
  int rows = 0;        // R
  int vocab_size = 0;  // V
  const float* logits = nullptr;
  float* out = nullptr;
};

// Of one row on the host.
float LogitMargin(std::span<const float> logits);

void LogitMarginsRef(const KernelContext& ctx, const LogitMarginsArgs& args);

}  // namespace foresight
