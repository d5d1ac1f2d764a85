// Pieces of work that don't depend on one another, in one launch: a link of the chain of launches less for
// each but one.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {

constexpr int kMaxPartThreads = 512;

// A part has thread blocks of its own, `blocks` of them, and `threads` in each, which are whole warps from
// the first on: the others leave, so blockDim tells a part nothing. part(block) runs in all of them.
template <typename... Parts>
struct PartList {
  __device__ void operator()(int) const {}
};

template <typename First, typename... Rest>
struct PartList<First, Rest...> {
  First first;
  PartList<Rest...> rest;

  __device__ void operator()(int block) const {
    if (block >= first.blocks) return rest(block - first.blocks);
    if (static_cast<int>(threadIdx.x) < first.threads) first(block);
  }
};

template <Successors kSuccessors, typename List>
__global__ void __launch_bounds__(kMaxPartThreads, 2) SideBySideKernel(const __grid_constant__ List parts) {
  AwaitInputs<kSuccessors>();
  parts(blockIdx.x);
}

inline PartList<> ListOf() {
  return {};
}
template <typename First, typename... Rest>
PartList<First, Rest...> ListOf(const First& first, const Rest&... rest) {
  return {first, ListOf(rest...)};
}

// `shared_bytes` of dynamic shared memory for a thread block of any part.
template <Successors kSuccessors, typename... Parts>
void LaunchSideBySide(const KernelContext& ctx, size_t shared_bytes, const Parts&... parts) {
  Launch(ctx, SideBySideKernel<kSuccessors, PartList<Parts...>>, (0 + ... + parts.blocks),
         std::max({parts.threads...}), shared_bytes, ListOf(parts...));
}

}  // namespace foresight::cuda
