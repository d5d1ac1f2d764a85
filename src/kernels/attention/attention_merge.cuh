// Merges the chunks of long lists that were items of their own.
#pragma once

#include "kernels/attention/key_list.cuh"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {

constexpr int kMergeThreads = kChunkDim / 4;

// A block has a row and head, a thread four dims of these; rows of a single chunk are left as they are.
template <bool kFaithful>
__global__ void __launch_bounds__(kMergeThreads) MergeChunks(Attending args) {
  const int row = blockIdx.y;
  Prepare(args, row);
  LoadArgument(args.chunk_sums.values);
  AwaitInputs();
  const int head = blockIdx.x;
  const int lane = threadIdx.x % 32;
  const ChunkSums& all = args.chunk_sums;
  const int64_t first = all.At(args, row, head, 0);
  const int64_t step = all.At(args, row, head, 1) - first;
  const SequenceRows sequence = SequenceAtOnce(args, row);
  constexpr int kBlock = kFaithful ? 64 : 32;  // of keys
  const int chunks = KeyList<kBlock>(args, sequence, row).chunks();
  if (chunks == 1) return;
  // Lane c has what chunk c has once for all dims.
  float now_max = kLowest;
  float2 weights = {};
  if (lane < chunks) {
    now_max = all.maxima[first + lane * step];
    weights = all.weights[first + lane * step];
  }
  static_assert(kMaxChunks <= 16);
  float4 values[kMaxChunks];
  const float* from = all.values + first * kChunkDim + 4 * threadIdx.x;
#pragma unroll
  for (int c = 0; c < kMaxChunks; ++c) {
    if (c < chunks) values[c] = *reinterpret_cast<const float4*>(from + c * step * kChunkDim);
  }

  float most = now_max;  // up to the lane's chunk
#pragma unroll
  for (int lanes = 1; lanes < kMaxChunks; lanes *= 2) {
    const float before = __shfl_up_sync(0xffffffff, most, lanes);
    if (lane >= lanes) most = fmaxf(most, before);
  }
  const float before = __shfl_up_sync(0xffffffff, most, 1);
  const float factors = lane == 0 ? 0 : Exp2(before - most);
  const float now_factors = Exp2(now_max - most);
  float4 o = {};
  float2 sums = {};  // of each half of the blocks of keys
#pragma unroll
  for (int c = 0; c < kMaxChunks; ++c) {
    const float factor = __shfl_sync(0xffffffff, factors, c);
    const float now_factor = __shfl_sync(0xffffffff, now_factors, c);
    const float2 now_sums = {__shfl_sync(0xffffffff, weights.x, c), __shfl_sync(0xffffffff, weights.y, c)};
    if (c >= chunks) continue;
    const auto add = [&](float& to, float x) { to = __fmaf_rn(to, factor, __fmul_rn(x, now_factor)); };
    add(sums.x, now_sums.x);
    add(sums.y, now_sums.y);
    add(o.x, values[c].x);
    add(o.y, values[c].y);
    add(o.z, values[c].z);
    add(o.w, values[c].w);
  }
  const float last_max = __shfl_sync(0xffffffff, most, chunks - 1);
  const float factor = 1 / (sums.x + sums.y + Exp2(SinkLogit(args, head) - last_max));
  const int d = 4 * static_cast<int>(threadIdx.x);
  const float2 low = OutputAt<kFaithful>(args, row, d, {o.x, o.y}, factor);
  const float2 high = OutputAt<kFaithful>(args, row, d + 2, {o.z, o.w}, factor);
  const int64_t at = (int64_t{row} * args.heads + head) * kChunkDim + d;
  if constexpr (kFaithful) {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(args.out) + at) = {PackBf16(low.x, low.y),
                                                                        PackBf16(high.x, high.y)};
  } else {
    *reinterpret_cast<float4*>(static_cast<float*>(args.out) + at) = {low.x, low.y, high.x, high.y};
  }
}

template <bool kFaithful>
void LaunchMerge(const KernelContext& ctx, const Attending& attending) {
  Launch(ctx, MergeChunks<kFaithful>, dim3(attending.heads, attending.rows), kMergeThreads, 0, attending);
}

}  // namespace foresight::cuda
