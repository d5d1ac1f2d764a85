// Attention outputs on their way from the accumulators of warpgroup products.
#pragma once

#include "kernels/attention/key_list.cuh"

namespace foresight::cuda {

// A thread's part of 128 dims of two heads, `head` and head + 8: o[4 n] and on are dims 8 n + 2 t and the
// next one behind `first_dim`, of each head. `shares`: 1 / the heads' sums of weights. Where kRotary, the
// upper 64 dims are, with the row's cos and sin. (Exchanging halves, so that a lane stores four neighbours,
// is slower.)
template <bool kRotary>
__device__ inline void StoreOutputs(const Attending& args, int row, int head, int first_dim,
                                    const float (&o)[64], const float (&shares)[2], const float* cos,
                                    const float* sin) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (head + 8 * half >= args.heads) continue;
    float* const out = args.out + (int64_t{row} * args.heads + head + 8 * half) * 512 + first_dim + 2 * t;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const float2 v = {o[4 * n + 2 * half], o[4 * n + 2 * half + 1]};
      const int turn = 4 * (n - 8) + t;
      *reinterpret_cast<float2*>(out + 8 * n) =
          kRotary && n >= 8 ? OutputOf<true, Dims::kRotary>(v, shares[half], cos[turn], sin[turn])
                            : OutputOf<true, Dims::kOthers>(v, shares[half], 0, 0);
    }
  }
}

}  // namespace foresight::cuda
