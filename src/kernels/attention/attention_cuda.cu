#include <cmath>

#include "base/check.h"
#include "kernels/attention/attention_block.cuh"
#include "kernels/attention/attention_cluster.cuh"
#include "kernels/attention/attention_wide.h"
#include "kernels/cuda/cuda_kernels.h"

namespace foresight::cuda {
namespace {

template <typename Keys>
void LaunchBlocks(const KernelContext& ctx, int rows, const Attending& attending) {
  const int slices = static_cast<int>(CeilDiv(attending.layout.dim, kSliceDims));
  Launch(ctx, BlockAttention<Keys>, dim3(CeilDiv(attending.heads, kBlockHeads), rows), kBlockThreads,
         BlockSpace<Keys>::Bytes(slices), attending);
}

template <typename Keys, int kM>
void LaunchClustersOf(const KernelContext& ctx, int rows, const Attending& attending) {
  LaunchClusters(ctx, ClusterAttention<Keys, kM>, kClusterBlocks,
                 dim3(CeilDiv(attending.heads, 16 * kM) * kClusterBlocks, rows), kClusterThreads,
                 sizeof(ClusterSpace<Keys, kM>), attending);
}

// Whether clusters for 16 m heads each can all run at once. Parts of a GPU hold whole clusters alone, which
// leaves some of its processors without one: an eighth is enough on an H200.
bool FitInClusters(const KernelContext& ctx, int rows, int heads, int m) {
  const int64_t blocks = int64_t{rows} * CeilDiv(heads, 16 * m) * kClusterBlocks;
  return 8 * blocks <= 7 * int64_t{DeviceOf(ctx).num_sms()};
}

}  // namespace

// Packed entries are faithful numerics', float32 ones clean numerics' (tensor/cache_view.h). Every kernel
// gives the same bits.
void Attention(const KernelContext& ctx, const AttentionArgs& args) {
  const bool packed = args.layout.format == CacheFormat::kPacked;
  const int64_t slices = CeilDiv(args.layout.dim, kSliceDims);
  CHECK(packed == ctx.faithful());
  CHECK(slices <= kMaxSlices);
  const Attending attending = {
      .sequences = args.sequences.data(),
      .num_sequences = static_cast<int>(args.sequences.size()),
      .rows = args.rows,
      .entries_max = args.entries_max,
      .heads = args.heads,
      .window = args.window,
      .layout = args.layout,
      .entry_bytes = args.layout.bytes(),
      .raw = args.raw,
      .compressed = args.compressed,
      .ratio = args.ratio,
      .topk = args.topk,
      .scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(args.layout.dim))),
      .q = args.q,
      .query_eps = args.query_eps,
      .entries = args.entries,
      .sink = args.sink,
      .picks = args.picks,
      .cos = args.cos,
      .sin = args.sin,
      .out = args.out};
  const int rows = args.rows;
  const int capability = DeviceOf(ctx).capability();
  const bool released_shape = args.layout.dim == 512 && args.layout.rope_dim == 64;
  const bool wide = packed && capability == 90 && released_shape;
  // Clusters take a long list's chunks one after another.
  constexpr int64_t kLong = 2048;
  if (wide && args.compressed == CompressedKeys::kAll && args.entries_max > kLong) {
    return LaunchWideAttention(ctx, attending);
  }
  if (capability >= 90 && released_shape && FitInClusters(ctx, rows, args.heads, 1)) {
    return packed ? LaunchClustersOf<PackedKeys, 1>(ctx, rows, attending)
                  : LaunchClustersOf<FloatKeys, 1>(ctx, rows, attending);
  }
  if (!packed) return LaunchBlocks<FloatKeys>(ctx, rows, attending);
  if (capability >= 90 && released_shape && FitInClusters(ctx, rows, args.heads, 2)) {
    return LaunchClustersOf<PackedKeys, 2>(ctx, rows, attending);
  }
  if (wide) return LaunchWideAttention(ctx, attending);
  LaunchBlocks<PackedKeys>(ctx, rows, attending);
}

}  // namespace foresight::cuda
