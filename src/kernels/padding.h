// Rows of a step behind those of its last sequence: padding, so that steps come in few shapes (RowTier).
//
// They are copies of the last row: its token, its position. Attention gives them what that row gets, so that
// they stay copies and ask for no other experts. Nothing is stored of them.
#pragma once

#include <algorithm>

#include "kernels/attention/attention.h"

namespace foresight {

// What the last row of the sequences got, for the padding. For tables of the host.
inline void CopyToPadding(const AttentionArgs& args) {
  if (args.sequences.empty()) return;
  const SequenceRows& last = args.sequences.back();
  const int64_t width = int64_t{args.heads} * args.layout.dim;
  const int end = last.first_row + last.num_rows;
  for (int row = end; row < args.rows; ++row) {
    std::copy_n(args.out.f32() + (end - 1) * width, width, args.out.f32() + row * width);
  }
}

}  // namespace foresight
