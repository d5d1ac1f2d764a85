// Attention outputs on their way from the accumulators of warpgroup products.
#pragma once

#include "kernels/attention/key_list.cuh"

namespace foresight::cuda {

// A thread's part of 128 dims of two heads, `head` and head + 8: o[4 n] and on are dims 8 n + 2 t and the
// next one behind `first_dim`, of each head. `shares`: 1 / the heads' sums of weights. Where kRotary, the
// upper 64 dims are, with the row's cos and sin. Pairs of lanes exchange halves, so that each stores four
// neighbours.
template <bool kRotary>
__device__ inline void StoreOutputs(const Attending& args, int row, int head, int first_dim,
                                    const float (&o)[64], const float (&shares)[2], const float* cos,
                                    const float* sin) {
  const int t = threadIdx.x % 4;
  const bool odd = t % 2 != 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* const out = args.out + (int64_t{row} * args.heads + head + 8 * half) * 512 + first_dim;
#pragma unroll
    for (int n = 0; n < 16; n += 2) {
      float2 v[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        v[i] = {o[4 * (n + i) + 2 * half], o[4 * (n + i) + 2 * half + 1]};
        if (kRotary && n >= 8) {
          const int at = 4 * (n + i - 8) + t;
          v[i] = OutputOf<true, Dims::kRotary>(v[i], shares[half], cos[at], sin[at]);
        } else {
          v[i] = OutputOf<true, Dims::kOthers>(v[i], shares[half], 0, 0);
        }
      }
      const float2 given = odd ? v[0] : v[1];
      const float2 taken = {__shfl_xor_sync(0xffffffff, given.x, 1), __shfl_xor_sync(0xffffffff, given.y, 1)};
      const float4 four =
          odd ? float4{taken.x, taken.y, v[1].x, v[1].y} : float4{v[0].x, v[0].y, taken.x, taken.y};
      if (head + 8 * half < args.heads) {
        *reinterpret_cast<float4*>(out + 8 * (n + odd) + 2 * (t & ~1)) = four;
      }
    }
  }
}

}  // namespace foresight::cuda
