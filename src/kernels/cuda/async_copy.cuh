// Copies from global to shared memory that run on their own (sm_80). They belong to the thread that began
// them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foresight::cuda {

// Copies kBytes (4, 8 or 16, and aligned so); where `present` is false it writes zeros and reads nothing.
template <int kBytes>
__device__ inline void CopyAsync(void* to, const void* from, bool present) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes),
               "r"(present ? kBytes : 0)
               : "memory");
}

// Where it lies in shared memory, for copies and loads whose addresses are to be computed once.
__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes of what is read once, past the first-level cache.
__device__ inline void StreamAsync(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void StreamAsync(void* to, const void* from) {
  StreamAsync(SharedAddress(to), from);
}

// Brings what lies there to the second-level cache.
__device__ inline void PrefetchL2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// The same of `bytes`, a multiple of 16 from such an address on (sm_90).
__device__ inline void PrefetchL2(const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// Brings what lies there to the first-level cache; nobody waits.
__device__ inline void Touch(const void* from) {
  asm volatile("{ .reg .b32 nothing; ld.global.b32 nothing, [%0]; }" ::"l"(from));
}

// At an address in shared memory.
__device__ inline uint4 LoadShared4(uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from)
               : "memory");
  return x;
}
__device__ inline uint2 LoadShared2(uint32_t from) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(from) : "memory");
  return x;
}

__device__ inline uint32_t LoadShared1(uint32_t from) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
  return x;
}
__device__ inline uint32_t LoadSharedHalf(uint32_t from) {
  uint16_t x;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(from) : "memory");
  return x;
}

// Ends a group of copies.
__device__ inline void EndCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all groups but the last kLeft are there, for the calling thread.
template <int kLeft>
__device__ inline void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace foresight::cuda
