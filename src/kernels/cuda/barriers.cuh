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

}  // namespace foresight::cuda
