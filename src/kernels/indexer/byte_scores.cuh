// Packed keys and queries as bytes (packed_query.cuh says which can be), multiplied by Hopper's tensor cores
// in half the time of bf16.
#pragma once

#include "kernels/cuda/byte_product.cuh"
#include "kernels/cuda/wgmma.cuh"
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

// What a lane finds out about the scales of a key's four blocks.
struct KeyScales {
  __device__ explicit KeyScales(uint32_t scales) {
    const uint32_t pairs = __vmaxu2(scales & 0x00ff00ff, scales >> 8 & 0x00ff00ff);
    top = max(pairs >> 16, pairs & 0xffff);
    const uint32_t exact = scales + 0x03030303 - top * 0x01010101;
    // Where bf16 would not be exact either, bytes aren't used: it must not matter how a key is multiplied.
    wide = (exact & 0xfcfcfcfc) != 0 || top - kLeastByteScale > kMostByteScale - kLeastByteScale;
    shifts = exact & 0x1f1f1f1f;
  }

  uint32_t top;     // the largest
  uint32_t shifts;  // bytes: by how much the codes of each block are to be shifted
  bool wide;        // the key can't be bytes
};

// What the sums of a key's products are to be multiplied by: a code's number is 2^4 of its value without the
// scale, and SumOfHeads makes 2^-22 of them.
__device__ inline float ScaleOfSums(uint32_t top) {
  return __uint_as_float((top - 4 + 22) << 23);
}

// A warp's keys of a tile as operand A, by step of 32 dims.
class ByteKeys {
 public:
  // Lane (g, t)'s codes of key g are at `codes` in shared memory, those of key g + 8 half_bytes further.
  // Lanes first_lane + g and first_lane + g + 8 have these keys' shifts.
  __device__ ByteKeys(uint32_t codes, int half_bytes, uint32_t shifts, int first_lane, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t of_key = __shfl_sync(0xffffffff, shifts, first_lane + lane / 4 + 8 * half);
      const uint32_t shift = PermuteBytes(of_key, 0, 0x4440 + lane % 4);
      const uint32_t low = 0x03020100u << shift;
      const uint32_t high = 0x0c080604u << shift;
      // Loads of half a word, for shifts take longer.
      const uint32_t quads = codes + half * half_bytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a_[i][half] = Numbers(low, high, LoadSharedHalf(quads + 4 * i));
        a_[i][half + 2] = Numbers(low, high, LoadSharedHalf(quads + 4 * i + 2));
      }
    }
  }

  // The products with a query of 2 kCount columns.
  template <int kCount>
  __device__ void Multiply(uint64_t query, uint32_t (&c)[kCount]) const {
    WarpgroupFence();
    WarpgroupMmaBytes<false>(c, a_[0], query);
#pragma unroll
    for (int i = 1; i < 4; ++i) {
      WarpgroupMmaBytes<true>(c, a_[i], Further(query, i * 32 * 2 * kCount));
    }
    EndProducts();
    AwaitByteProducts(c);
  }

 private:
  // Of four codes.
  __device__ static uint32_t Numbers(uint32_t low, uint32_t high, uint32_t codes) {
    const uint32_t positive = PermuteBytes(low, high, codes);
    const uint32_t negative = PermuteBytes(low, high, codes ^ 0x8888);
    // With 128 added to each, so that none borrows of the next.
    return (positive - negative + 0x80808080) ^ 0x80808080;
  }

  uint32_t a_[4][4];
};

// A number, if it is positive, else zero, times 2^-22: the bits of a number below 2^24 are a float 2^-149
// times as large, and those of a negative one are none, which the cut makes zero.
__device__ inline float Rectified(uint32_t number) {
  return SaturatedProduct(__uint_as_float(number), 0x1p127f);
}

// A row's weights in the order in which lanes of quads have heads: (8 j + 2 t, 8 j + 2 t + 1).
__device__ inline void LoadWeights(float2 (&to)[8], const QueryWeights& weights, int lane) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    to[j] = *reinterpret_cast<const float2*>(weights.of_bytes + 8 * j + lane % 4 * 2);
  }
}

// A lane's part of the scores of keys g and g + 8 without their scales; c[kFirst..] are the sums of products
// of a row.
template <int kFirst, int kCount>
__device__ inline void SumOfHeads(const uint32_t (&c)[kCount], const float2 (&weights)[8], float (&sums)[2]) {
  sums[0] = sums[1] = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += weights[j].x * Rectified(c[kFirst + 4 * j + 2 * half]);
      sums[half] += weights[j].y * Rectified(c[kFirst + 4 * j + 2 * half + 1]);
    }
  }
}

// Sums of a quad's values, as SumOfQuad adds them; lane t gets that of sums[t / 2][t % 2].
__device__ inline float SumsOfQuad(const float (&sums)[2][2], int lane) {
  const float first = SumOfNeighbors(sums[0][0], sums[0][1], lane);
  const float second = SumOfNeighbors(sums[1][0], sums[1][1], lane);
  const bool is_second = lane % 4 / 2;
  return (is_second ? second : first) + __shfl_xor_sync(0xffffffff, is_second ? first : second, 2);
}

// LargestOfWarp of the lanes t = 0 and 1 of all quads, and of the others, in these.
__device__ inline float LargestOfHalves(float score) {
  float largest = fmaxf(score, -INFINITY) + 0.0f;
#pragma unroll
  for (const int distance : {1, 4, 8, 16}) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
  }
  return largest;
}

}  // namespace foresight::cuda
