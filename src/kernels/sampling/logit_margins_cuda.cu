// A thread block a row: each thread keeps the two largest of its values, and pairs are merged.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

struct TopTwo {
  float largest = -INFINITY;
  float second = -INFINITY;

  __device__ void Add(float x) {
    second = fmaxf(second, fminf(x, largest));
    largest = fmaxf(largest, x);
  }
  __device__ void Merge(float other_largest, float other_second) {
    Add(other_largest);
    second = fmaxf(second, other_second);
  }
  __device__ void MergeLanes() {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const float other_largest = __shfl_xor_sync(~0u, largest, lanes);
      const float other_second = __shfl_xor_sync(~0u, second, lanes);
      Merge(other_largest, other_second);
    }
  }
};

__global__ void __launch_bounds__(kThreads)
    LogitMarginsKernel(const float* logits, int vocab_size, float* out) {
  __shared__ TopTwo of_warp[kWarps];
  AwaitInputs();
  const float* const row = logits + static_cast<int64_t>(blockIdx.x) * vocab_size;
  TopTwo top;
#pragma unroll 4
  for (int v = static_cast<int>(threadIdx.x); v < vocab_size; v += kThreads) top.Add(row[v]);
  top.MergeLanes();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = top;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  top = threadIdx.x < kWarps ? of_warp[threadIdx.x] : TopTwo();
  top.MergeLanes();
  if (threadIdx.x != 0) return;
  out[blockIdx.x] =
      top.second == -INFINITY ? kLogitMarginMax : fminf(top.largest - top.second, kLogitMarginMax);
}

}  // namespace

void LogitMargins(const KernelContext& ctx, const LogitMarginsArgs& args) {
  Launch(ctx, LogitMarginsKernel, args.rows, kThreads, 0, args.logits, args.vocab_size, args.out);
}

}  // namespace foresight::cuda
