#include <algorithm>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/sequences.cuh"
#include "kernels/cuda/side_by_side.cuh"
#include "kernels/norm_rope/row_parts.cuh"

namespace foresight::cuda {
namespace {

// Of blockIdx.y.
struct AngleTables {
  AngleTable of[2];
};

__global__ void RopeTableKernel(const int64_t* positions, AngleTables tables, int64_t count, int pairs) {
  AwaitInputs();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const AngleTable& table = tables.of[blockIdx.y];
  const AngleOf angle(positions[i / pairs], table.frequencies[i % pairs]);
  table.cos[i] = angle.cos;
  table.sin[i] = angle.sin;
}

// Blocks share the last rows of sequence blockIdx.y, a warp to a row. Items are whole words of 8 bytes.
__global__ void StoreKeysKernel(const SequenceRows* sequences, int per_layer, int rows,
                                const std::byte* entries) {
  AwaitInputs();
  const SequenceRows& sequence = sequences[blockIdx.y];
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) / per_layer * rows + sequence.first_row;
  const RingView& ring = sequence.cache.window;
  const int64_t words = ring.item_bytes / 8;
  const int64_t kept = sequence.num_rows < ring.slots ? sequence.num_rows : ring.slots;
  const int warps = blockDim.x / 32;
  for (int64_t i = blockIdx.x * warps + threadIdx.x / 32; i < kept; i += gridDim.x * warps) {
    const int64_t row = sequence.num_rows - kept + i;
    const uint2* from = reinterpret_cast<const uint2*>(entries + (first_row + row) * ring.item_bytes);
    uint2* to = reinterpret_cast<uint2*>(ItemOf(ring, sequence.first_position + row));
    for (int64_t w = threadIdx.x % 32; w < words; w += 32) to[w] = from[w];
  }
}

}  // namespace

void RmsNorm(const KernelContext& ctx, const RmsNormArgs& args) {
  LaunchSideBySide<Successors::kAtOnce>(ctx, 0, RmsNormPart(args, ctx.faithful()));
}

void RopeTable(const KernelContext& ctx, const RopeTableArgs& args) {
  const int64_t count = int64_t{args.rows} * args.pairs;
  AngleTables tables;
  CHECK(args.tables.size() <= std::size(tables.of));
  std::copy(args.tables.begin(), args.tables.end(), tables.of);
  Launch(ctx, RopeTableKernel, dim3(CeilDiv(count, 128), static_cast<unsigned>(args.tables.size())), 128, 0,
         args.positions, tables, count, args.pairs);
}

void StoreKeys(const KernelContext& ctx, const StoreKeysArgs& args) {
  constexpr int kThreads = 256;
  const unsigned blocks = std::min(CeilDiv(args.rows, kThreads / 32), 16u);
  Launch(ctx, StoreKeysKernel, dim3(blocks, static_cast<unsigned>(args.sequences.size())), kThreads, 0,
         args.sequences.data(), static_cast<int>(args.sequences.size()) / args.layers, args.rows,
         args.entries);
}

}  // namespace foresight::cuda
