#include <cstring>

#include "device/cuda/small_copies.h"

namespace foresight {
namespace {

constexpr int kThreads = 128;

// As AwaitInputs() of the other kernels.
__device__ void AwaitPredecessors() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
}

template <int64_t kBytes>
struct Carried {
  uint4 quads[kBytes / 16];
};

template <int64_t kBytes>
__global__ void CarryKernel(const __grid_constant__ Carried<kBytes> carried, std::byte* to, int bytes) {
  AwaitPredecessors();
  for (int i = static_cast<int>(threadIdx.x); 16 * i < bytes; i += kThreads) {
    const uint4 quad = carried.quads[i];
    if (16 * i + 16 <= bytes) {
      reinterpret_cast<uint4*>(to)[i] = quad;
    } else {
      for (int b = 16 * i; b < bytes; ++b) to[b] = reinterpret_cast<const std::byte*>(carried.quads)[b];
    }
  }
}

__global__ void SmallFetchKernel(std::byte* to, const std::byte* from, int bytes) {
  AwaitPredecessors();
  const uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  const int words = places % 4 == 0 ? bytes / 4 : 0;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kThreads) {
    reinterpret_cast<uint32_t*>(to)[i] = reinterpret_cast<const uint32_t*>(from)[i];
  }
  for (int b = 4 * words + static_cast<int>(threadIdx.x); b < bytes; b += kThreads) to[b] = from[b];
}

template <typename... Parameters, typename... Args>
cudaError_t Launch(cudaStream_t stream, bool early, void (*kernel)(Parameters...), const Args&... args) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = 1;
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

template <int64_t kBytes>
cudaError_t Carry(cudaStream_t stream, bool early, std::byte* to, const std::byte* from, int64_t bytes) {
  Carried<kBytes> carried;
  std::memcpy(carried.quads, from, static_cast<size_t>(bytes));
  return Launch(stream, early, CarryKernel<kBytes>, carried, to, static_cast<int>(bytes));
}

}  // namespace

cudaError_t LaunchCarry(cudaStream_t stream, bool early, std::byte* to, const std::byte* from,
                        int64_t bytes) {
  if (bytes <= 512) return Carry<512>(stream, early, to, from, bytes);
  if (bytes <= 1536) return Carry<1536>(stream, early, to, from, bytes);
  return Carry<kCarriedBytesMax>(stream, early, to, from, bytes);
}

cudaError_t LaunchSmallFetch(cudaStream_t stream, bool early, std::byte* pinned, const std::byte* from,
                             int64_t bytes) {
  return Launch(stream, early, SmallFetchKernel, pinned, from, static_cast<int>(bytes));
}

}  // namespace foresight
