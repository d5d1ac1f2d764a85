// How the warps of a thread block wait for one another.
#pragma once

#include <cstdint>

namespace foresight::cuda {

// A barrier in shared memory: a phase ends with its `count`th arrival, and the next one begins.
struct alignas(8) SharedBarrier {
  uint64_t word;

  __device__ void Init(int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(Address()), "r"(count) : "memory");
  }
  // What the thread wrote before is seen by who waits for the phase.
  __device__ void Arrive() {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(Address()) : "memory");
  }
  // Arrives when all copies that the thread has begun (cp.async) are there.
  __device__ void ArriveWithCopies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(Address()) : "memory");
  }
  // Until the phase of this parity has ended; the one before the first has odd parity. No phase after the
  // next one may end before.
  __device__ void Wait(uint32_t parity) {
    uint32_t done = 0;
    while (done == 0) {
#if __CUDA_ARCH__ >= 900
      asm volatile(
          "{ .reg .pred done; mbarrier.try_wait.parity.shared.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
          : "=r"(done)
          : "r"(Address()), "r"(parity)
          : "memory");
#else
      asm volatile(
          "{ .reg .pred done; mbarrier.test_wait.parity.shared.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
          : "=r"(done)
          : "r"(Address()), "r"(parity)
          : "memory");
#endif
    }
  }

 private:
  __device__ uint32_t Address() {
    return static_cast<uint32_t>(__cvta_generic_to_shared(&word));
  }
};

// A barrier of some warps of the block: kId from 1 to 15, one for each group of `threads`.
//
// Racecheck counts the barriers that a warp has waited at, whichever they were, and takes what it wrote for
// seen by those alone that have waited at more. So warps that meet again have waited at as many until then.
template <int kId>
__device__ inline void GroupBarrier(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}

__device__ inline void GroupBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same for warps that needn't wait for the others.
template <int kId>
__device__ inline void GroupArrive(int threads) {
  asm volatile("bar.arrive %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}

// The value alone, without what was written before it.
__device__ inline int LoadRelaxed(const int* from) {
  int value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Orders the thread's memory operations for the whole device.
__device__ inline void Fence() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// A warp counts what it has done: whoever learns of it finds all that its lanes wrote. Returns the counter
// before; who goes on to read what others wrote says Fence() first, and reads past the first-level
// cache.
__device__ inline int WarpCount(int* counter) {
  __syncwarp();
  int before = 0;
  if (threadIdx.x % 32 == 0) {
    asm volatile("atom.add.release.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  }
  return __shfl_sync(0xffffffff, before, 0);
}

}  // namespace foresight::cuda
