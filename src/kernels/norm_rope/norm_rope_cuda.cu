#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {
namespace {

constexpr int kNormThreads = 256;
constexpr int kNormQuads = 8;  // values of a row that a thread has, by four

// One block per row. out may be x: a thread writes what it alone has read.
__global__ void __launch_bounds__(kNormThreads)
    RmsNormKernel(const float* x, VectorView weight, int dim, float eps, bool round, float* out) {
  AwaitInputs();
  __shared__ float sums[32];
  const float4* from = reinterpret_cast<const float4*>(x + static_cast<int64_t>(blockIdx.x) * dim);
  float4* to = reinterpret_cast<float4*>(out + static_cast<int64_t>(blockIdx.x) * dim);
  float4 values[kNormQuads];
  float squares = 0;
#pragma unroll
  for (int q = 0; q < kNormQuads; ++q) {
    const int i = q * kNormThreads + threadIdx.x;
    values[q] = i < dim / 4 ? from[i] : float4{0, 0, 0, 0};
  }
#pragma unroll
  for (const float4& v : values) squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
  const float rinv = 1.0f / sqrtf(BlockSum(squares, sums) / static_cast<float>(dim) + eps);
#pragma unroll
  for (int q = 0; q < kNormQuads; ++q) {
    const int i = q * kNormThreads + threadIdx.x;
    if (i >= dim / 4) continue;
    const float4& v = values[q];
    float4 y = {VectorValue(weight, 4 * i) * (v.x * rinv), VectorValue(weight, 4 * i + 1) * (v.y * rinv),
                VectorValue(weight, 4 * i + 2) * (v.z * rinv), VectorValue(weight, 4 * i + 3) * (v.w * rinv)};
    if (round) y = {RoundBf16(y.x), RoundBf16(y.y), RoundBf16(y.z), RoundBf16(y.w)};
    to[i] = y;
  }
}

__global__ void RopeTableKernel(const int64_t* positions, const float* frequencies, int64_t count, int pairs,
                                float* cos_out, float* sin_out) {
  AwaitInputs();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const AngleOf angle(positions[i / pairs], frequencies[i % pairs]);
  cos_out[i] = angle.cos;
  sin_out[i] = angle.sin;
}

// One block per row, a thread to a pair of neighbours: the 64 values that share a scale are a warp's.
__global__ void KeyKernel(const float* kv, VectorView norm, const float* cos, const float* sin,
                          EntryLayout layout, int64_t entry_bytes, float eps, bool round,
                          std::byte* entries) {
  AwaitInputs();
  __shared__ float sums[32];
  const int64_t row = blockIdx.x;
  const int pair = threadIdx.x;
  const int first_rotary = (layout.dim - layout.rope_dim) / 2;
  const bool mine = pair < layout.dim / 2;
  float2 v = mine ? reinterpret_cast<const float2*>(kv + row * layout.dim)[pair] : float2{0, 0};
  const float squares = v.x * v.x + v.y * v.y;
  const float rinv = 1.0f / sqrtf(BlockSum(squares, sums) / static_cast<float>(layout.dim) + eps);
  std::byte* entry = entries + row * entry_bytes;
  if (mine) {
    v = {VectorValue(norm, 2 * pair) * (v.x * rinv), VectorValue(norm, 2 * pair + 1) * (v.y * rinv)};
    if (round) v = {RoundBf16(v.x), RoundBf16(v.y)};
    if (pair >= first_rotary) {
      const int64_t at = row * (layout.rope_dim / 2) + pair - first_rotary;
      v = Turned(v, cos[at], sin[at]);
    }
  }
  EncodeEntryPairs(layout, pair, v, entry);
}

// Blocks share the last rows of sequence blockIdx.y, a warp to a row. Items are whole words of 8 bytes.
__global__ void StoreKeysKernel(const SequenceRows* sequences, const std::byte* entries) {
  AwaitInputs();
  const SequenceRows& sequence = sequences[blockIdx.y];
  const RingView& ring = sequence.cache.window;
  const int64_t words = ring.item_bytes / 8;
  const int64_t kept = sequence.num_rows < ring.slots ? sequence.num_rows : ring.slots;
  const int warps = blockDim.x / 32;
  for (int64_t i = blockIdx.x * warps + threadIdx.x / 32; i < kept; i += gridDim.x * warps) {
    const int64_t row = sequence.num_rows - kept + i;
    const uint2* from =
        reinterpret_cast<const uint2*>(entries + (sequence.first_row + row) * ring.item_bytes);
    uint2* to = reinterpret_cast<uint2*>(ItemOf(ring, sequence.first_position + row));
    for (int64_t w = threadIdx.x % 32; w < words; w += 32) to[w] = from[w];
  }
}

}  // namespace

void RmsNorm(const KernelContext& ctx, const RmsNormArgs& args) {
  CHECK(args.dim % 4 == 0 && args.dim <= 4 * kNormQuads * kNormThreads);
  Launch(ctx, RmsNormKernel, dim3(args.rows), kNormThreads, 0, args.x, args.weight, args.dim, args.eps,
         ctx.faithful(), args.out);
}

void RopeTable(const KernelContext& ctx, const RopeTableArgs& args) {
  const int64_t count = int64_t{args.rows} * args.pairs;
  Launch(ctx, RopeTableKernel, dim3(CeilDiv(count, 128)), 128, 0, args.positions, args.frequencies, count,
         args.pairs, args.cos, args.sin);
}

void Key(const KernelContext& ctx, const KeyArgs& args) {
  CHECK(args.layout.dim % 2 == 0 && args.layout.dim <= 2048);
  Launch(ctx, KeyKernel, dim3(args.rows), CeilDiv(args.layout.dim / 2, 32) * 32, 0, args.kv, args.norm,
         args.cos, args.sin, args.layout, args.layout.bytes(), args.eps, ctx.faithful(), args.entries);
}

void StoreKeys(const KernelContext& ctx, const StoreKeysArgs& args) {
  Launch(ctx, StoreKeysKernel, dim3(16, static_cast<unsigned>(args.sequences.size())), 256, 0,
         args.sequences.data(), args.entries);
}

}  // namespace foresight::cuda
