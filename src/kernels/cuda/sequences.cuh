// Where a row of a step belongs: the host launches by rows, the device knows the sequences.
#pragma once

#include "kernels/kernel_context.h"

namespace foresight::cuda {

// PagedView's and RingView's items; their own operators are the host's.
__device__ inline std::byte* ItemOf(const PagedView& view, int64_t i) {
  return view.blocks[i / view.per_block] + view.offset + i % view.per_block * view.item_bytes;
}
__device__ inline std::byte* ItemOf(const RingView& view, int64_t position) {
  return view.data + position % view.slots * view.item_bytes;
}

// The sequence that row `row` is of. Sequences are in row order and leave no gap.
__device__ inline const SequenceRows& SequenceOf(const SequenceRows* sequences, int count, int row) {
  int low = 0;
  int high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (sequences[middle].first_row <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return sequences[low];
}

}  // namespace foresight::cuda
