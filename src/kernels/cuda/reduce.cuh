// Sums and maxima over the threads of a warp or block: one order, whatever the launch.
#pragma once

namespace foresight::cuda {

// All lanes get the same bits: the butterfly adds the same pairs on either side.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  return x;
}

// Four sums at once: lanes 8i .. 8i+7 get that of x[i], with the bits of WarpSum.
__device__ inline float WarpSumOfFour(const float (&x)[4]) {
  const int lane = threadIdx.x % 32;
  const bool upper = lane & 16;
  float a = (upper ? x[2] : x[0]) + __shfl_xor_sync(0xffffffff, upper ? x[0] : x[2], 16);
  const float b = (upper ? x[3] : x[1]) + __shfl_xor_sync(0xffffffff, upper ? x[1] : x[3], 16);
  const bool odd = lane & 8;
  a = (odd ? b : a) + __shfl_xor_sync(0xffffffff, odd ? a : b, 8);
#pragma unroll
  for (int other = 4; other > 0; other /= 2) a += __shfl_xor_sync(0xffffffff, a, other);
  return a;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, other));
  return x;
}

// Over the first `threads` of a block, whole warps which are all that is left of it; the warps' sums are
// added in order. `shared` [32] is free again after a barrier.
__device__ inline float BlockSum(float x, float* shared, unsigned threads = blockDim.x) {
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned w = 0; w < threads / 32; ++w) sum += shared[w];
  return sum;
}

}  // namespace foresight::cuda
