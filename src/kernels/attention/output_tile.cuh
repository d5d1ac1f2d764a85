// Attention outputs on their way from the accumulators of warpgroup products.
#pragma once

#include "kernels/attention/key_list.cuh"

namespace foresight::cuda {

// Of the words of four neighbouring lanes, as the rows of a matrix, column t in lane t.
__device__ inline uint4 Transposed(const uint32_t (&words)[4]) {
  const bool odd = threadIdx.x % 2 != 0;
  const bool upper = threadIdx.x % 4 >= 2;
  const uint32_t low = __shfl_xor_sync(0xffffffff, odd ? words[0] : words[1], 1);
  const uint32_t high = __shfl_xor_sync(0xffffffff, odd ? words[2] : words[3], 1);
  const uint2 of_low = odd ? uint2{low, words[1]} : uint2{words[0], low};
  const uint2 of_high = odd ? uint2{high, words[3]} : uint2{words[2], high};
  const uint2 given = upper ? of_low : of_high;
  const uint2 taken = {__shfl_xor_sync(0xffffffff, given.x, 2), __shfl_xor_sync(0xffffffff, given.y, 2)};
  return upper ? uint4{taken.x, taken.y, of_high.x, of_high.y} : uint4{of_low.x, of_low.y, taken.x, taken.y};
}

// Stores 32 values of a head from `at` on, of which the lane has the words 4 i + t, t being its place among
// four. It stores 16 bytes of them: the memory takes whole sectors of 32 bytes, and in pieces of 4 bytes a
// lane outputs take twice as long.
__device__ inline void StoreWords(const Attending& args, int64_t at, const uint32_t (&words)[4],
                                  bool is_there) {
  const uint4 eight = Transposed(words);
  if (!is_there) return;
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(args.out) + at + threadIdx.x % 4 * 8) = eight;
}

// A thread's part of 128 dims of two heads, `head` and head + 8: o[4 n] and on are dims 8 n + 2 t and the
// next one behind `first_dim`, of each head. `shares`: 1 / the heads' sums of weights. Where kRotary, the
// upper 64 dims are, with the row's cos and sin. By whole warps.
template <bool kRotary>
__device__ inline void StoreOutputs(const Attending& args, int row, int head, int first_dim,
                                    const float (&o)[64], const float (&shares)[2], const float* cos,
                                    const float* sin) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t first = (int64_t{row} * args.heads + head + 8 * half) * 512 + first_dim;
#pragma unroll
    for (int of_four = 0; of_four < 16; of_four += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = of_four + i;
        const float2 v = {o[4 * n + 2 * half], o[4 * n + 2 * half + 1]};
        const int turn = 4 * (n - 8) + t;
        const float2 out = kRotary && n >= 8
                               ? OutputOf<true, Dims::kRotary>(v, shares[half], cos[turn], sin[turn])
                               : OutputOf<true, Dims::kOthers>(v, shares[half], 0, 0);
        words[i] = PackBf16(out.x, out.y);
      }
      StoreWords(args, first + 8 * of_four, words, head + 8 * half < args.heads);
    }
  }
}

// The same of a chunk that is an item of its own: the sums, for MergeChunks.
template <int kCount>
__device__ inline void StoreChunkValues(const Attending& args, int row, int head, int chunk, int first_dim,
                                        const float (&o)[kCount]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (head + 8 * half >= args.heads) continue;
    float* const to = args.chunk_sums.values +
                      args.chunk_sums.At(args, row, head + 8 * half, chunk) * kChunkDim + first_dim +
                      threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kCount / 4; ++n) {
      *reinterpret_cast<float2*>(to + 8 * n) = {o[4 * n + 2 * half], o[4 * n + 2 * half + 1]};
    }
  }
}

}  // namespace foresight::cuda
