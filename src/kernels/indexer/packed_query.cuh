// Queries of the indexer as packed keys want them.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequences.cuh"
#include "kernels/indexer/indexing.cuh"
#include "kernels/norm_rope/encode.cuh"

namespace foresight::cuda {

constexpr int kPackedDim = 128;   // of keys and queries
constexpr int kPackedHeads = 64;  // of a query, zeros behind the last
constexpr int kQueryBytes = kPackedHeads * kPackedDim * 2;
constexpr int kStepBytes = 16 * kPackedHeads * 2;  // of a query: 16 dims of all heads

// Hadamard of tensor/formats.h for 128 values, four neighbours per lane.
__device__ inline void HadamardOfWarp(float (&x)[4]) {
  const float sums[4] = {x[0] + x[1], x[0] - x[1], x[2] + x[3], x[2] - x[3]};
  x[0] = sums[0] + sums[2];
  x[1] = sums[1] + sums[3];
  x[2] = sums[0] - sums[2];
  x[3] = sums[1] - sums[3];
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const float sign = threadIdx.x & lanes ? -1.0f : 1.0f;
#pragma unroll
    for (float& v : x) v = fmaf(sign, v, __shfl_xor_sync(0xffffffff, v, lanes));
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(kPackedDim));
  for (float& v : x) v *= scale;
}

// x rounded to the nearest E2M1, ties to the even code, saturating: value by value E2M1(ToE2M1(x)).
__device__ inline float RoundE2M1(float x) {
  // Adding a number whose last place is the distance of neighbours leaves no more places to the sum.
  const float a = fabsf(x);
  const float places = a < 2 ? 0x1.8p22f : a < 4 ? 0x1.8p23f : 0x1.8p24f;
  return copysignf(fminf((a + places) - places, 6.0f), x);
}

// A dot product doesn't care for the order of its dims. Lane t of a quad takes dims [32t, 32t+32) of a key,
// which are one block of codes with one scale; of each eight codes the pairs (0, 4), (1, 5), (2, 6), (3, 7)
// unpack together. Queries follow: 16 x 8 matrices of 8 heads by 8 dims as the tensor cores read them, and
// this is where dim d of a head lies, in bf16 values.
__device__ inline int QueryPlace(int head, int d) {
  const int matrix = d % 32 / 8 * 4 + d % 4;
  const int column = d / 32 * 2 + d % 8 / 4;
  return (matrix * kPackedHeads + head) * 8 + column;
}

// One head of a row's query, by one warp: rotated, transformed and rounded as the keys are.
__device__ inline void PackHead(const Indexing& args, int64_t row, int head, uint16_t* query) {
  const int lane = threadIdx.x % 32;
  float x[4] = {};
  if (head < args.heads) {
    const float4 values =
        reinterpret_cast<const float4*>(args.iq + (row * args.heads + head) * kPackedDim)[lane];
    float2 v[2] = {{values.x, values.y}, {values.z, values.w}};
    const int pairs = args.rope_dim / 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pair = 2 * lane + i - (kPackedDim / 2 - pairs);
      if (pair >= 0) v[i] = Turned(v[i], args.cos[row * pairs + pair], args.sin[row * pairs + pair]);
      x[2 * i] = args.faithful ? RoundBf16(v[i].x) : v[i].x;
      x[2 * i + 1] = args.faithful ? RoundBf16(v[i].y) : v[i].y;
    }
    HadamardOfWarp(x);
    float amax = 0;
#pragma unroll
    for (float& y : x) {
      y = RoundBf16(y);
      amax = fmaxf(amax, fabsf(y));
    }
#pragma unroll
    for (int other = 1; other < 8; other *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, other));
    const uint8_t scale = Fp4QuantScale(amax);
    const float inverse = E8M0(static_cast<uint8_t>(254 - scale));  // exact
#pragma unroll
    for (float& y : x) y = RoundE2M1(y * inverse) * E8M0(scale);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) query[QueryPlace(head, 4 * lane + i)] = Bf16Bits(x[i]);
}

}  // namespace foresight::cuda
