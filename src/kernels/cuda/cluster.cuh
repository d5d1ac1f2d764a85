// Clusters of blocks that write to one another's shared memory (sm_90), one wrapper for each instruction. In
// code for earlier GPUs they are empty: nothing launches clusters there.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"

namespace foresight::cuda {

__device__ inline int ClusterRank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

// A barrier over all threads of a cluster in two halves: what a thread wrote before it arrived, to any
// block's shared memory, is seen by every thread that has waited.
__device__ inline void ClusterArrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
// The same, but what was written need not be seen.
__device__ inline void ClusterArriveRelaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void ClusterWait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Writes to block `rank`'s shared memory where `own` is in this block's.
__device__ inline void StoreToBlock(float* own, int rank, float value) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .b32 to; mapa.shared::cluster.u32 to, %0, %1; st.shared::cluster.f32 [to], %2; }" ::"r"(
          static_cast<uint32_t>(__cvta_generic_to_shared(own))),
      "r"(rank), "f"(value)
      : "memory");
#endif
}

// What the thread wrote to its block's shared memory may be read by transfers; before the barrier behind
// which one is begun.
__device__ inline void FenceForTransfers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// What the thread has read of its block's shared memory may be overwritten by fetches and transfers; before
// the barrier behind which one is begun. A barrier alone doesn't order them behind loads (they are another
// proxy's), and loads do come late: behind the operands of products that are under way.
__device__ inline void FenceForRefill() {
  FenceForTransfers();
}

// What the thread wrote to global memory may be read by fetches; before the barrier behind which one is
// begun.
__device__ inline void FenceForFetches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// Counts bytes that other blocks of the cluster send, in shared memory at the same place in each of them. A
// phase ends when all the bytes it expects are there.
struct alignas(8) TransferBarrier {
  uint64_t word;

  // By one thread, before it arrives at the cluster's first barrier. A phase also waits for the arrival of
  // `count` of this block's threads, one of which says how many bytes it expects.
  __device__ void Init(int count = 1) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mbarrier.init.shared.b64 [%0], %1; fence.mbarrier_init.release.cluster;" ::"r"(Address(this)),
        "r"(count)
        : "memory");
#endif
  }
  // By the others. What the thread wrote before is seen by who waits for the phase.
  __device__ void Arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(Address(this))
                 : "memory");
#endif
  }
  // By one thread in each phase, as its arrival; some of the bytes may be there before.
  __device__ void Expect(int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(Address(this)),
        "r"(bytes)
        : "memory");
#endif
  }
  __device__ void Wait(uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{ .reg .pred done; mbarrier.try_wait.parity.shared.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
          : "=r"(done)
          : "r"(Address(this)), "r"(parity)
          : "memory");
    }
#endif
  }
  // Copies from global memory to this block's `to`; both begin at multiples of 16 bytes, and `bytes` is one.
  __device__ void Fetch(void* to, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            Address(to)),
        "l"(from), "r"(bytes), "r"(Address(this))
        : "memory");
#endif
  }
  // The same to `to` in each of the cluster's `blocks` blocks, whose barriers count the bytes: memory is read
  // once.
  __device__ void FetchForAll(void* to, const void* from, int bytes, int blocks) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1], %2, [%3], %4;" ::"r"(Address(to)),
        "l"(from), "r"(bytes), "r"(Address(this)), "h"(static_cast<uint16_t>((1 << blocks) - 1))
        : "memory");
#endif
  }
  // Sends what lies at `from`, `bytes` (a multiple of 16), to block `rank`'s shared memory where `own` is in
  // this block's.
  __device__ void Transfer(int rank, const void* own, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .b32 to; .reg .b32 barrier; mapa.shared::cluster.u32 to, %0, %3; "
        "mapa.shared::cluster.u32 barrier, %4, %3; "
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], [%1], %2, [barrier]; "
        "}" ::"r"(Address(own)),
        "r"(Address(from)), "r"(bytes), "r"(rank), "r"(Address(this))
        : "memory");
#endif
  }
  // Writes 16 bytes to block `rank`'s shared memory where `own` is in this block's; the rank may be this
  // block's own.
  __device__ void Store(int rank, const void* own, const uint4& value) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .b32 to; .reg .b32 barrier; mapa.shared::cluster.u32 to, %0, %1; "
        "mapa.shared::cluster.u32 barrier, %2, %1; "
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%3, %4, %5, %6}, [barrier]; "
        "}" ::"r"(Address(own)),
        "r"(rank), "r"(Address(this)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
        : "memory");
#endif
  }
  // The same of 8 bytes.
  __device__ void Store(int rank, const void* own, const float2& value) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .b32 to; .reg .b32 barrier; mapa.shared::cluster.u32 to, %0, %1; "
        "mapa.shared::cluster.u32 barrier, %2, %1; "
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [to], {%3, %4}, [barrier]; }" ::"r"(
            Address(own)),
        "r"(rank), "r"(Address(this)), "f"(value.x), "f"(value.y)
        : "memory");
#endif
  }
  // The same of 4 bytes.
  __device__ void Store(int rank, const void* own, float value) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .b32 to; .reg .b32 barrier; mapa.shared::cluster.u32 to, %0, %1; "
        "mapa.shared::cluster.u32 barrier, %2, %1; "
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [to], %3, [barrier]; }" ::"r"(
            Address(own)),
        "r"(rank), "r"(Address(this)), "f"(value)
        : "memory");
#endif
  }

 private:
  __device__ static uint32_t Address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  }
};

}  // namespace foresight::cuda
