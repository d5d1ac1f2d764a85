#include <algorithm>

#include "device/cuda/fp4_codes.h"

namespace foresight {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksMax = 4096;

__global__ void ArrangeFp4Kernel(uint8_t* codes, int64_t bytes) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const int64_t words = reinterpret_cast<uintptr_t>(codes) % 4 == 0 ? bytes / 4 : 0;
  auto* word = reinterpret_cast<uint32_t*>(codes);
  for (int64_t i = thread; i < words; i += threads) word[i] = ArrangedFp4(word[i], 0x01010101);
  for (int64_t i = 4 * words + thread; i < bytes; i += threads) {
    codes[i] = static_cast<uint8_t>(ArrangedFp4(codes[i]));
  }
}

}  // namespace

cudaError_t LaunchArrangeFp4(cudaStream_t stream, uint8_t* codes, int64_t bytes) {
  const int64_t blocks = std::clamp<int64_t>((bytes / 4 + kThreads - 1) / kThreads, 1, kBlocksMax);
  ArrangeFp4Kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(codes, bytes);
  return cudaGetLastError();
}

}  // namespace foresight
