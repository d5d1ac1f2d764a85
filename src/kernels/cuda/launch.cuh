// How a table entry reaches its device.
#pragma once

#include "device/cuda/cuda_queue.h"
#include "kernels/kernel_context.h"

namespace foresight::cuda {

inline CudaQueue& DeviceOf(const KernelContext& ctx) {
  return QueueOf(*ctx.device);
}

// When the next kernel's blocks may come: once all blocks of this one run; once these have their inputs; or
// once each of them has called (CallSuccessors). The sooner, the more time they have before their own. But
// while earlier kernels end they find room on some multiprocessors alone and crowd there, and what they read
// ahead is read while this kernel's inputs are: which is better is to be measured, in a step.
enum class Successors { kAtOnce, kBehindInputs, kOnCall };

// By any thread of a block, once or more.
__device__ inline void CallSuccessors() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// The first statement of every kernel (or RehearseAndRun below): from here on, everything that earlier
// kernels wrote is there and nothing that they read may still be needed. What comes before it in a kernel
// runs while its predecessor ends, and may touch weights alone (programmatic dependent launch; before sm_90
// kernels follow one another whole).
template <Successors kSuccessors = Successors::kAtOnce>
__device__ inline void AwaitInputs() {
#if __CUDA_ARCH__ >= 900
  if constexpr (kSuccessors == Successors::kAtOnce) CallSuccessors();
  cudaGridDependencySynchronize();
  if constexpr (kSuccessors == Successors::kBehindInputs) CallSuccessors();
#endif
}

// Instead of AwaitInputs(), for kernels that are over sooner than their instructions and arguments have come
// to a multiprocessor that has done something else in between: body(false) while the predecessor ends, a
// rehearsal, then body(true). In the rehearsal the body takes the same path, reads weights instead of inputs,
// and stores nothing.
template <Successors kSuccessors = Successors::kAtOnce, typename Body>
__device__ inline void RehearseAndRun(bool rehearses, const Body& body) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kSuccessors == Successors::kAtOnce) CallSuccessors();
#pragma unroll 1
  for (int pass = rehearses ? 0 : 1; pass < 2; ++pass) {
    if (pass == 1) {
      __syncthreads();
      AwaitInputs<kSuccessors>();
    }
    body(pass == 1);
  }
#else
  body(true);
#endif
}

// Launches kernel<<<grid, block, shared_bytes>>>(args...) on the device's stream, in clusters of `cluster`
// neighbours along x; a refused launch becomes the device's fault. More than 48 KB of shared memory is asked
// for by itself. A grid of zero is no launch.
template <typename... Parameters, typename... Args>
void LaunchClusters(const KernelContext& ctx, void (*kernel)(Parameters...), unsigned cluster, dim3 grid,
                    dim3 block, size_t shared_bytes, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  CudaQueue& device = DeviceOf(ctx);
  if (shared_bytes > (size_t{48} << 10)) {
    device.Note(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "shared memory of a kernel");
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (device.capability() >= 90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = device.stream();
  config.attrs = attributes;
  config.numAttrs = count;
  device.Note(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), "launch of a kernel");
}

// The same without clusters.
template <typename... Parameters, typename... Args>
void Launch(const KernelContext& ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Args... args) {
  LaunchClusters(ctx, kernel, 1, grid, block, shared_bytes, args...);
}

inline unsigned CeilDiv(int64_t a, int64_t b) {
  return static_cast<unsigned>((a + b - 1) / b);
}

}  // namespace foresight::cuda
