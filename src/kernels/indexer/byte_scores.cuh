// Packed keys and queries as bytes (packed_query.cuh says which can be), multiplied by Hopper's tensor cores
// in half the time of bf16.
#pragma once

#include "kernels/cuda/byte_product.cuh"
#include "kernels/indexer/packed_query.cuh"
#include "kernels/indexer/packed_scores.cuh"
#include "kernels/indexer/score_share.cuh"

namespace foresight::cuda {

constexpr uint32_t kLeastByteScale = 127 - 40;  // of a key's blocks, as E8M0s
constexpr uint32_t kMostByteScale = 127 + 33;
constexpr int kByteQueryBytes = kPackedHeads * kPackedDim;
constexpr int kByteStepBytes = 32 * kPackedHeads;  // of a query: 32 dims of all heads

// Where byte `at` of a row's query lies if two rows are side by side; that of the second is kByteStepBytes /
// 2 further.
__device__ inline int PlaceInPair(int at) {
  constexpr int kHalf = kByteStepBytes / 2;
  return at / kHalf * (2 * kHalf) + at % kHalf;
}

// A warp's keys of a tile as operand A, by step of 32 dims.
class ByteKeys {
 public:
  __device__ ByteKeys(const uint8_t* keys, int lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    // A lane finds out by how much the codes of a key's four blocks are to be shifted.
    const uint32_t scales = Word(keys, lane % kWarpKeys, kPackedDim / 8);
    const uint32_t pairs = __vmaxu2(scales & 0x00ff00ff, scales >> 8 & 0x00ff00ff);
    const uint32_t top = max(pairs >> 16, pairs & 0xffff);
    const uint32_t shifts = scales + 0x03030303 - top * 0x01010101;
    // Where bf16 would not be exact either, bytes aren't used: it must not matter how a key is multiplied.
    wide = __any_sync(0xffffffff,
                      (shifts & 0xfcfcfcfc) != 0 || top - kLeastByteScale > kMostByteScale - kLeastByteScale);
    // A code's number is 2^4 of its value without the scale; the sums are 2^-22 of theirs.
    scale = __uint_as_float((__shfl_sync(0xffffffff, top, g + t % 2 * 8) - 4 + 22) << 23);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t shift = PermuteBytes(__shfl_sync(0xffffffff, shifts, g + 8 * half), 0, 0x4440 + t) & 31;
      const uint32_t low = 0x03020100u << shift;
      const uint32_t high = 0x0c080604u << shift;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t codes = Word(keys, g + 8 * half, 4 * t + i);
        const uint32_t negated = codes ^ 0x88888888;
        a_[i][half] = Numbers(low, high, codes, negated);
        a_[i][half + 2] = Numbers(low, high, codes >> 16, negated >> 16);
      }
    }
  }

  // The products with the bytes of two queries side by side.
  __device__ void Multiply(const uint8_t* queries, uint32_t (&c)[64]) const {
    const uint32_t low = static_cast<uint32_t>(MatricesAt(queries, kByteStepBytes));
    const auto step = [&](int i) {  // the steps differ in the lower half alone
      return uint64_t{128 >> 4} << 32 | (low + static_cast<uint32_t>(i * (2 * kByteStepBytes >> 4)));
    };
    WarpgroupFence();
    WarpgroupMmaBytes<false>(c, a_[0], step(0));
#pragma unroll
    for (int i = 1; i < 4; ++i) WarpgroupMmaBytes<true>(c, a_[i], step(i));
    EndProducts();
    AwaitByteProducts(c);
  }

  bool wide;    // some key of the warp's can't be bytes
  float scale;  // what scores are to be multiplied by, of key g in even lanes, of key g + 8 in odd ones

 private:
  __device__ static uint32_t Word(const uint8_t* keys, int key, int word) {
    return reinterpret_cast<const uint32_t*>(keys + key * kPackedKeyBytes)[word];
  }
  // Of four codes.
  __device__ static uint32_t Numbers(uint32_t low, uint32_t high, uint32_t codes, uint32_t negated) {
    // With 128 added to each, so that none borrows of the next.
    return (PermuteBytes(low, high, codes) - PermuteBytes(low, high, negated) + 0x80808080) ^ 0x80808080;
  }

  uint32_t a_[4][4];
};

// A number, if it is positive, else zero, times 2^-22: the bits of a number below 2^24 are a float 2^-149
// times as large, and those of a negative one are none, which the cut makes zero.
__device__ inline float Rectified(uint32_t number) {
  return SaturatedProduct(__uint_as_float(number), 0x1p127f);
}

// The scores of a warp's keys without their scales, in lanes as SumOfQuad has them; c[kFirst..] are the sums
// of products of a row.
template <int kFirst>
__device__ inline float SumOfHeads(const uint32_t (&c)[64], const QueryWeights& weights, int lane) {
  float sums[2] = {};  // of a lane's keys, eight apart
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 weight = *reinterpret_cast<const float2*>(weights.of_bytes + 8 * j + lane % 4 * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += weight.x * Rectified(c[kFirst + 4 * j + 2 * half]);
      sums[half] += weight.y * Rectified(c[kFirst + 4 * j + 2 * half + 1]);
    }
  }
  return SumOfQuad(sums[0], sums[1], lane);
}

}  // namespace foresight::cuda
