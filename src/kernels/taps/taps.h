// What a DSpark head taps of the target's layers (dspark.md 1.2), kept by position until context rows are
// made of it.
#pragma once

#include <span>

#include "kernels/kernel_context.h"

namespace foresight {

// Writes the mean over the streams into the taps ring: of each sequence the last min(num_rows, slots) rows.
//
// Shapes   streams [T, m, D] f32 · row of the ring: taps side by side, this one's D values from `offset` on;
//          float32 values, or bf16 ones in faithful numerics
// State    cache.window is the taps ring
// Numerics float32 sum; faithful: rounded to bf16.
struct StoreTapArgs {
  std::span<const SequenceRows> sequences;
  int m = 0;
  int dim = 0;         // D
  int64_t offset = 0;  // values
  const float* streams = nullptr;
};

// Reads rows of the ring: those at positions first_position, first_position + 1, ... of each sequence.
//
// Shapes   out [T, width] f32, width values to a row of the ring
// State    cache.window is the taps ring
struct LoadTapsArgs {
  std::span<const SequenceRows> sequences;
  int64_t width = 0;
  float* out = nullptr;
};

void StoreTapRef(const KernelContext& ctx, const StoreTapArgs& args);
void LoadTapsRef(const KernelContext& ctx, const LoadTapsArgs& args);

}  // namespace foresight
