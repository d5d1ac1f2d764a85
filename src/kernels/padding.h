// Rows of a step behind those of its last sequence, and sequences behind the last one: padding, so that steps
// come in few shapes (base/row_tiers.h).
//
// Such rows are copies of the last row: its token, its position. Attention gives them what that row gets, so
// that they stay copies and ask for no other experts. Nothing is stored of them.
#pragma once

#include <algorithm>

#include "kernels/attention/attention.h"

namespace foresight {

// Padding of the sequences.
inline constexpr SequenceRows kNobody = {
    .first_row = SequenceRows::kNoRow, .num_rows = 0, .first_position = 0, .cache = {}};

// What the last row of the sequences got, for the padding. For tables of the host.
inline void CopyToPadding(const AttentionArgs& args) {
  int end = 0;
  for (const SequenceRows& s : args.sequences) end += s.num_rows;
  if (end == 0) return;
  const int64_t width = int64_t{args.heads} * args.layout.dim;
  for (int row = end; row < args.rows; ++row) {
    std::copy_n(args.out.f32() + (end - 1) * width, width, args.out.f32() + row * width);
  }
}

}  // namespace foresight
