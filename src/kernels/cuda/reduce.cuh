// Sums and maxima over the threads of a warp or block: one order, whatever the launch.
#pragma once

namespace foresight::cuda {

// All lanes get the same bits: the butterfly adds the same pairs on either side.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  return x;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, other));
  return x;
}

// Over a block of whole warps, the warps' sums added in order. `shared` [32] is free again after a barrier.
__device__ inline float BlockSum(float x, float* shared) {
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += shared[w];
  return sum;
}

}  // namespace foresight::cuda
