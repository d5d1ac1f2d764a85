#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {
namespace {

// One thread block per row of one sequence: grid (rows of the longest, sequences).
__global__ void StoreTapKernel(const SequenceRows* sequences, int m, int dim, int64_t offset,
                               const float* streams, bool faithful) {
  AwaitInputs();
  const SequenceRows& sequence = sequences[blockIdx.y];
  const RingView& ring = sequence.cache.window;
  const int64_t kept = sequence.num_rows < ring.slots ? sequence.num_rows : ring.slots;
  for (int64_t i = sequence.num_rows - kept + blockIdx.x; i < sequence.num_rows; i += gridDim.x) {
    std::byte* item = ring.data + (sequence.first_position + i) % ring.slots * ring.item_bytes;
    const float* row = streams + (sequence.first_row + i) * m * dim;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
      double sum = 0;  // as in the definition, to the bit: there is time for it
      for (int j = 0; j < m; ++j) sum += row[int64_t{j} * dim + d];
      const float mean = static_cast<float>(sum / m);
      if (faithful) {
        reinterpret_cast<uint16_t*>(item)[offset + d] = Bf16Bits(mean);
      } else {
        reinterpret_cast<float*>(item)[offset + d] = mean;
      }
    }
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
  Launch(ctx, StoreTapKernel, dim3(8, args.sequences.size()), 256, 0, args.sequences.data(), args.m, args.dim,
         args.offset, args.streams, ctx.faithful());
}

void LoadTaps(const KernelContext& ctx, const LoadTapsArgs& args) {
  Launch(ctx, LoadTapsKernel, dim3(8, args.sequences.size()), 256, 0, args.sequences.data(), args.width,
         ctx.faithful(), args.out);
}

}  // namespace foresight::cuda
