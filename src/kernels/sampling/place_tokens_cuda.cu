#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void PlaceTokensKernel(const PlacedToken* tokens, int count, std::byte* to, int64_t stride) {
  AwaitInputs();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  *reinterpret_cast<TokenId*>(to + tokens[i].row * stride) = *tokens[i].token;
}

}  // namespace

void PlaceTokens(const KernelContext& ctx, const PlaceTokensArgs& args) {
  const int count = static_cast<int>(args.tokens.size());
  Launch(ctx, PlaceTokensKernel, CeilDiv(count, kThreads), kThreads, 0, args.tokens.data(), count,
         reinterpret_cast<std::byte*>(args.to), args.stride);
}

}  // namespace foresight::cuda
