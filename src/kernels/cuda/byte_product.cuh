// Products of bytes by a warpgroup, sm_90a; exact, in 32 bits. What wgmma.cuh says of products holds here
// too: operands in registers or described, fences, groups. Code for other targets is empty.
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace foresight::cuda {

// Byte i is the one of (low, high) that bits 0 to 2 of nibble i of `codes` tell, or, with bit 3, eight times
// that one's sign bit. The upper half of `codes` doesn't matter.
__device__ inline uint32_t PermuteBytes(uint32_t low, uint32_t high, uint32_t codes) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(codes));
  return bytes;
}

// a b, cut to [0, 1]; what is no number becomes 0.
__device__ inline float SaturatedProduct(float a, float b) {
  float y;
  asm("mul.rn.sat.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// c [64, N] = (kAdd ? c : 0) + a [64, 32] b [32, N], N 64 or 128; signed bytes; a in registers: of warp w's
// rows 16 w..16 w + 15 a thread has bytes 4 t..4 t + 3 and 16 more of rows g and g + 8, in the order of
// MmaBf16's fragment; b K-major, 16 bytes in the place of eight bf16. c[4 j + i] is element i of MmaBf16's
// fragment for columns 8 j..8 j + 7.
#define FORESIGHT_MMA_BYTES(count, columns, of, adds)                                                \
  template <bool kAdd>                                                                               \
  __device__ inline void WarpgroupMmaBytes(uint32_t(&c)[count], const uint32_t(&a)[4], uint64_t b) { \
    FORESIGHT_PRODUCT(FORESIGHT_PRODUCT_TEXT("m64n" columns "k32.s32.s8.s8", count, adds, of, "")    \
                      : FORESIGHT_SUMS_##count("+r")                                                 \
                      : FORESIGHT_REGISTERS_AND_MEMORY);                                             \
  }
FORESIGHT_MMA_BYTES(32, "64", "{%32, %33, %34, %35}, %36", "%37")
FORESIGHT_MMA_BYTES(64, "128", "{%64, %65, %66, %67}, %68", "%69")
#undef FORESIGHT_MMA_BYTES

// Until all products are done; the compiler is kept from moving the use of their sums before it.
template <int kCount>
__device__ inline void AwaitByteProducts(uint32_t (&c)[kCount]) {
  AwaitProducts<0>();
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(c[i])::"memory");
}

}  // namespace foresight::cuda
