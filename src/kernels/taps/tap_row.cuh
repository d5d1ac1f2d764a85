// A tap of one row, for kernels that have the streams at hand.
#pragma once

#include "kernels/cuda/formats.cuh"
#include "kernels/kernel_context.h"

namespace foresight::cuda {

// StoreTapArgs without the sequences.
struct TapSource {
  int m;
  int dim;
  int64_t offset;
  const float* streams;
  bool faithful;
};

// Of row i of the sequence, by a thread block; nothing if the ring has no room for it or it is padding.
__device__ inline void StoreTapRow(const TapSource& tap, const SequenceRows& sequence, int i) {
  const RingView& ring = sequence.cache.window;
  if (i < sequence.num_rows - ring.slots || i >= sequence.num_rows) return;
  std::byte* item = ring.data + (sequence.first_position + i) % ring.slots * ring.item_bytes;
  const float* row = tap.streams + static_cast<int64_t>(sequence.first_row + i) * tap.m * tap.dim;
  for (int d = threadIdx.x; d < tap.dim; d += blockDim.x) {
    double sum = 0;  // as in the definition, to the bit: there is time for it
    for (int j = 0; j < tap.m; ++j) sum += row[int64_t{j} * tap.dim + d];
    const float mean = static_cast<float>(sum / tap.m);
    if (tap.faithful) {
      reinterpret_cast<uint16_t*>(item)[tap.offset + d] = Bf16Bits(mean);
    } else {
      reinterpret_cast<float*>(item)[tap.offset + d] = mean;
    }
  }
}

}  // namespace foresight::cuda
