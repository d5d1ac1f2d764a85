#include <cmath>

#include "base/check.h"
#include "kernels/attention/attention_block.cuh"
#include "kernels/attention/attention_cluster.cuh"
#include "kernels/attention/attention_hopper.h"
#include "kernels/cuda/cuda_kernels.h"

namespace foresight::cuda {
namespace {

template <typename Keys>
void LaunchBlocks(const KernelContext& ctx, int rows, const Attending& attending) {
  const int slices = static_cast<int>(CeilDiv(attending.layout.dim, kSliceDims));
  Launch(ctx, BlockAttention<Keys>, dim3(CeilDiv(attending.heads, kBlockHeads), rows), kBlockThreads,
         BlockSpace<Keys>::Bytes(slices), attending);
}

template <typename Keys, int kHeads>
void LaunchClustersOf(const KernelContext& ctx, const Attending& attending) {
  LaunchClusters(ctx, ClusterAttention<Keys, kHeads>, kClusterBlocks,
                 dim3(CeilDiv(attending.heads, kHeads) * kClusterBlocks, attending.rows), kClusterThreads,
                 sizeof(ClusterSpace<Keys, kHeads>), attending);
}

// Whether clusters of `cluster` blocks for a row and `heads_each` of its heads can all run at once. Parts of
// a GPU hold whole clusters alone, which leaves some of its processors without one: of an H200's 132 up to
// twelve.
bool FitInClusters(const KernelContext& ctx, int rows, int heads, int heads_each, int cluster) {
  const int64_t blocks = int64_t{rows} * CeilDiv(heads, heads_each) * cluster;
  return 11 * blocks <= 10 * int64_t{DeviceOf(ctx).num_sms()};
}

// By clusters for 8 or 16 heads, where these can all run at once; false: they can't. The fewer heads a
// cluster has, the less its blocks send one another.
template <typename Keys>
bool AttendInClusters(const KernelContext& ctx, const Attending& attending) {
  if (FitInClusters(ctx, attending.rows, attending.heads, 8, kClusterBlocks)) {
    LaunchClustersOf<Keys, 8>(ctx, attending);
  } else if (FitInClusters(ctx, attending.rows, attending.heads, 16, kClusterBlocks)) {
    LaunchClustersOf<Keys, 16>(ctx, attending);
  } else {
    return false;
  }
  return true;
}

// Packed entries of 512 values on sm_90a.
void AttendOnHopper(const KernelContext& ctx, const Attending& attending) {
  const int rows = attending.rows;
  const int heads = attending.heads;
  constexpr int64_t kLong = 2048;  // clusters take a long list's chunks one after another
  const bool is_long = attending.compressed == CompressedKeys::kAll && attending.entries_max > kLong;
  if (!is_long) {
    if (AttendInClusters<PackedKeys>(ctx, attending)) return;
    for (int heads_each : {32, 64}) {
      if (FitInClusters(ctx, rows, heads, heads_each, 8)) {
        return LaunchPanelAttention(ctx, attending, 8, heads_each);
      }
    }
    // Clusters of four take five blocks of keys at a time: two such panels are faster than pairs, four
    // aren't.
    if (MaxChunks(attending) == 1 && MaxKeys(attending) <= 640 && FitInClusters(ctx, rows, heads, 64, 4)) {
      return LaunchPanelAttention(ctx, attending, 4, 64);
    }
  }
  const bool pairs_fit = 2 * int64_t{rows} * CeilDiv(heads, 64) <= DeviceOf(ctx).num_sms();
  if (pairs_fit && MaxChunks(attending) > 0) return LaunchPairAttention(ctx, attending);
  LaunchWideAttention(ctx, attending);
}

}  // namespace

// Packed entries are faithful numerics', float32 ones clean numerics' (tensor/cache_view.h). Every kernel
// gives the same bits.
void Attention(const KernelContext& ctx, const AttentionArgs& args) {
  const bool packed = args.layout.format == CacheFormat::kPacked;
  const int64_t slices = CeilDiv(args.layout.dim, kSliceDims);
  CHECK(packed == ctx.faithful());
  CHECK(args.q.dtype == (packed ? DType::kBF16 : DType::kF32) && args.out.dtype == args.q.dtype);
  CHECK(slices <= kMaxSlices);
  CHECK(args.layout.dim % 8 == 0 && args.layout.rope_dim % 8 == 0);
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
      .q = args.q.data,
      .query_eps = args.query_eps,
      .entries = args.entries,
      .sink = args.sink,
      .picks = args.picks,
      .cos = args.cos,
      .sin = args.sin,
      .out = args.out.data};
  const int rows = args.rows;
  const int capability = DeviceOf(ctx).capability();
  const bool released_shape = args.layout.dim == 512 && args.layout.rope_dim == 64;
  if (packed && capability == 90 && released_shape) return AttendOnHopper(ctx, attending);
  const bool clusters = capability >= 90 && released_shape;
  if (!packed) {
    if (clusters && AttendInClusters<FloatKeys>(ctx, attending)) return;
    return LaunchBlocks<FloatKeys>(ctx, rows, attending);
  }
  if (clusters && AttendInClusters<PackedKeys>(ctx, attending)) return;
  LaunchBlocks<PackedKeys>(ctx, rows, attending);
}

}  // namespace foresight::cuda
