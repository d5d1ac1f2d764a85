#include <cmath>

#include "base/check.h"
#include "kernels/attention/attention_block.cuh"
#include "kernels/attention/attention_cluster.cuh"
#include "kernels/attention/attention_hopper.h"
#include "kernels/attention/attention_merge.cuh"
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
  LaunchClusters(
      ctx, ClusterAttention<Keys, kHeads>, kClusterBlocks,
      dim3(CeilDiv(attending.heads, kHeads) * kClusterBlocks, attending.rows, attending.chunk_sums.chunks),
      kClusterThreads, sizeof(ClusterSpace<Keys, kHeads>), attending);
}

// Whether clusters of `cluster` blocks for a chunk of a row's list and `heads_each` of its heads can all run
// at once. Parts of a GPU hold whole clusters alone, which leaves some of its processors without one: of an
// H200's 132 up to twelve.
bool FitInClusters(const KernelContext& ctx, const Attending& attending, int heads_each, int cluster) {
  const int64_t blocks =
      int64_t{attending.rows} * attending.chunk_sums.chunks * CeilDiv(attending.heads, heads_each) * cluster;
  return 11 * blocks <= 10 * int64_t{DeviceOf(ctx).num_sms()};
}

// By clusters for 8 or 16 heads, where these can all run at once; false: they can't. The fewer heads a
// cluster has, the less its blocks send one another.
template <typename Keys>
bool AttendInClusters(const KernelContext& ctx, const Attending& attending) {
  if (FitInClusters(ctx, attending, 8, kClusterBlocks)) {
    LaunchClustersOf<Keys, 8>(ctx, attending);
  } else if (FitInClusters(ctx, attending, 16, kClusterBlocks)) {
    LaunchClustersOf<Keys, 16>(ctx, attending);
  } else {
    return false;
  }
  return true;
}

// Packed entries of 512 values on sm_90a, for no more rows than pairs fit.
void AttendOnHopper(const KernelContext& ctx, const Attending& attending) {
  if (AttendInClusters<PackedKeys>(ctx, attending)) return;
  for (int heads_each : {32, 64}) {
    if (FitInClusters(ctx, attending, heads_each, 8)) {
      return LaunchPanelAttention(ctx, attending, 8, heads_each);
    }
  }
  // Clusters of four take five blocks of keys at a time: two such panels are faster than pairs, four aren't.
  if (MaxChunkKeys(attending) <= 640 && FitInClusters(ctx, attending, 64, 4)) {
    return LaunchPanelAttention(ctx, attending, 4, 64);
  }
  LaunchPairAttention(ctx, attending);
}

// Calls attend(attending) with room for what chunks leave, then merges them.
template <bool kFaithful, typename Attend>
void AttendAndMerge(const KernelContext& ctx, Attending attending, const Attend& attend) {
  ArenaScope scope(*ctx.scratch);
  ChunkSums& sums = attending.chunk_sums;
  if (sums.chunks > 1) {
    const int64_t count = int64_t{sums.chunks} * attending.rows * attending.heads;
    sums.values = ctx.scratch->Allocate<float>(count * kChunkDim);
    sums.maxima = ctx.scratch->Allocate<float>(count);
    sums.weights = ctx.scratch->Allocate<float2>(count);
  }
  attend(attending);
  if (sums.chunks > 1) LaunchMerge<kFaithful>(ctx, attending);
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
  Attending attending = {
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
  attending.chunk_sums.chunks = MaxChunks(attending);
  const int rows = args.rows;
  const int capability = DeviceOf(ctx).capability();
  const bool released_shape = args.layout.dim == 512 && args.layout.rope_dim == 64;
  // Chunks are items where their number is known.
  const bool in_chunks = released_shape && attending.chunk_sums.chunks > 0;
  if (packed && capability == 90 && released_shape) {
    const bool pairs_fit = 2 * int64_t{rows} * CeilDiv(args.heads, 64) <= DeviceOf(ctx).num_sms();
    if (!in_chunks || !pairs_fit) return LaunchWideAttention(ctx, attending);
    return AttendAndMerge<true>(ctx, attending,
                                [&](const Attending& in_room) { AttendOnHopper(ctx, in_room); });
  }
  const bool clusters = capability >= 90 && in_chunks && FitInClusters(ctx, attending, 16, kClusterBlocks);
  if (!packed) {
    if (!clusters) return LaunchBlocks<FloatKeys>(ctx, rows, attending);
    return AttendAndMerge<false>(
        ctx, attending, [&](const Attending& in_room) { AttendInClusters<FloatKeys>(ctx, in_room); });
  }
  if (!clusters) return LaunchBlocks<PackedKeys>(ctx, rows, attending);
  AttendAndMerge<true>(ctx, attending,
                       [&](const Attending& in_room) { AttendInClusters<PackedKeys>(ctx, in_room); });
}

}  // namespace foresight::cuda
