#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {
namespace {

// One block per row. out may be x: a thread writes what it alone has read.
__global__ void RmsNormKernel(const float* x, VectorView weight, int dim, float eps, bool round, float* out) {
  AwaitInputs();
  __shared__ float sums[32];
  x += static_cast<int64_t>(blockIdx.x) * dim;
  out += static_cast<int64_t>(blockIdx.x) * dim;
  float squares = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < dim; i += blockDim.x) squares += x[i] * x[i];
  const float rinv = 1.0f / sqrtf(BlockSum(squares, sums) / static_cast<float>(dim) + eps);
#pragma unroll 4
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    const float y = VectorValue(weight, i) * (x[i] * rinv);
    out[i] = round ? RoundBf16(y) : y;
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

// One warp per head; a lane owns pairs lane, lane + 32, ... of neighbouring values.
__global__ void QueryKernel(float* q, const float* cos, const float* sin, int64_t count, int heads, int dim,
                            int rope_dim, float eps, bool round) {
  AwaitInputs();
  const int64_t head = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (head >= count) return;
  float2* values = reinterpret_cast<float2*>(q + head * dim);
  const int lane = threadIdx.x % 32;
  float squares = 0;
#pragma unroll 8
  for (int i = lane; i < dim / 2; i += 32) {
    const float2 v = values[i];
    squares += v.x * v.x;
    squares += v.y * v.y;
  }
  const float rinv = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dim) + eps);
  const int pairs = rope_dim / 2;
  const int first = dim / 2 - pairs;
  const int64_t row = head / heads;
#pragma unroll 8
  for (int i = lane; i < dim / 2; i += 32) {
    float2 v = values[i];
    v.x *= rinv;
    v.y *= rinv;
    if (i >= first) v = Turned(v, cos[row * pairs + i - first], sin[row * pairs + i - first]);
    if (round) v = {RoundBf16(v.x), RoundBf16(v.y)};
    values[i] = v;
  }
}

// One block per row; the key lies in shared memory [dim].
__global__ void KeyKernel(const float* kv, VectorView norm, const float* cos, const float* sin,
                          EntryLayout layout, int64_t entry_bytes, float eps, bool round,
                          std::byte* entries) {
  AwaitInputs();
  extern __shared__ float key[];
  __shared__ float sums[32];
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < layout.dim; i += blockDim.x) key[i] = kv[row * layout.dim + i];
  __syncthreads();
  NormShared(key, layout.dim, norm, eps, round, sums);
  const int pairs = layout.rope_dim / 2;
  float2* rotary = reinterpret_cast<float2*>(key + layout.dim - layout.rope_dim);
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    rotary[i] = Turned(rotary[i], cos[row * pairs + i], sin[row * pairs + i]);
  }
  __syncthreads();
  EncodeEntryShared(layout, key, entries + row * entry_bytes);
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
  Launch(ctx, RmsNormKernel, dim3(args.rows), args.dim <= 1024 ? 128 : 512, 0, args.x, args.weight, args.dim,
         args.eps, ctx.faithful(), args.out);
}

void RopeTable(const KernelContext& ctx, const RopeTableArgs& args) {
  const int64_t count = int64_t{args.rows} * args.pairs;
  Launch(ctx, RopeTableKernel, dim3(CeilDiv(count, 128)), 128, 0, args.positions, args.frequencies, count,
         args.pairs, args.cos, args.sin);
}

void Query(const KernelContext& ctx, const QueryArgs& args) {
  const int64_t count = int64_t{args.rows} * args.heads;
  Launch(ctx, QueryKernel, dim3(CeilDiv(count, 4)), 128, 0, args.q, args.cos, args.sin, count, args.heads,
         args.dim, args.rope_dim, args.eps, ctx.faithful());
}

void Key(const KernelContext& ctx, const KeyArgs& args) {
  Launch(ctx, KeyKernel, dim3(args.rows), 128, args.layout.dim * sizeof(float), args.kv, args.norm, args.cos,
         args.sin, args.layout, args.layout.bytes(), args.eps, ctx.faithful(), args.entries);
}

void StoreKeys(const KernelContext& ctx, const StoreKeysArgs& args) {
  Launch(ctx, StoreKeysKernel, dim3(16, static_cast<unsigned>(args.sequences.size())), 256, 0,
         args.sequences.data(), args.entries);
}

}  // namespace foresight::cuda
