#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/taps/tap_row.cuh"

namespace foresight::cuda {
namespace {

// Blocks share the rows of sequence blockIdx.y.
__global__ void StoreTapKernel(const SequenceRows* sequences, TapSource tap) {
  AwaitInputs();
  const SequenceRows& sequence = sequences[blockIdx.y];
  const int64_t slots = sequence.cache.window.slots;
  const int skipped = sequence.num_rows > slots ? sequence.num_rows - static_cast<int>(slots) : 0;
  for (int i = skipped + static_cast<int>(blockIdx.x); i < sequence.num_rows; i += gridDim.x) {
    StoreTapRow(tap, sequence, i);
  }
}

__global__ void LoadTapsKernel(const SequenceRows* sequences, int64_t width, bool faithful, float* out) {
  AwaitInputs();
  const SequenceRows& sequence = sequences[blockIdx.y];
  const RingView& ring = sequence.cache.window;
  for (int64_t i = blockIdx.x; i < sequence.num_rows; i += gridDim.x) {
    const std::byte* item = ring.data + (sequence.first_position + i) % ring.slots * ring.item_bytes;
    float* row = out + (sequence.first_row + i) * width;
    for (int64_t d = threadIdx.x; d < width; d += blockDim.x) {
      row[d] = faithful ? Bf16(reinterpret_cast<const uint16_t*>(item)[d])
                        : reinterpret_cast<const float*>(item)[d];
    }
  }
}

}  // namespace

void StoreTap(const KernelContext& ctx, const StoreTapArgs& args) {
  Launch(ctx, StoreTapKernel, dim3(8, args.sequences.size()), 256, 0, args.sequences.data(),
         TapSource{args.m, args.dim, args.offset, args.streams, ctx.faithful()});
}

void LoadTaps(const KernelContext& ctx, const LoadTapsArgs& args) {
  Launch(ctx, LoadTapsKernel, dim3(8, args.sequences.size()), 256, 0, args.sequences.data(), args.width,
         ctx.faithful(), args.out);
}

}  // namespace foresight::cuda
