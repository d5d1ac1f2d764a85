// Tensor core products of a warpgroup (128 threads), sm_90a: asynchronous, operands in shared memory. Code
// for other targets is empty, and nothing launches it.
//
// An operand is described by where it lies: rows of 64 bf16 values in eight chunks of 16 bytes, chunk c of
// row r at place c ^ (r % 8), and such tiles one after another ("128-byte swizzle"); a tile begins at a
// multiple of 1024 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FORESIGHT_WGMMA
#endif

namespace foresight::cuda {

// What lies at `from`. With the sum's index along the chunks (K-major), 8 rows are 1024 bytes apart and
// `tile_bytes` is not used; with it along the rows, tiles of 64 columns are `tile_bytes` apart.
__device__ inline uint64_t OperandAt(const void* from, int tile_bytes = 16) {
  const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from)) & 0x3ffff;
  return address >> 4 | static_cast<uint64_t>(tile_bytes >> 4) << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

// The same of a K-major operand that isn't swizzled: matrices of 8 rows of 16 bytes, whose neighbours along k
// are k_stride bytes apart and along the rows 128. It begins at a multiple of 16 bytes.
__device__ inline uint64_t MatricesAt(const void* from, int k_stride) {
  const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from)) & 0x3ffff;
  return address >> 4 | static_cast<uint64_t>(k_stride >> 4) << 16 | uint64_t{128 >> 4} << 32;
}

// The same a number of bytes further: the steps differ in the lower half alone.
__device__ inline uint64_t Further(uint64_t operand, int bytes) {
  return (operand >> 32 << 32) | (static_cast<uint32_t>(operand) + static_cast<uint32_t>(bytes >> 4));
}

// The same operand, which all lanes of the warp have, in registers that they share: products take it from
// there.
__device__ inline uint64_t Shared(uint64_t operand) {
  return (operand >> 32 << 32) | __shfl_sync(0xffffffff, static_cast<uint32_t>(operand), 0);
}

// Before the first product of a group, when registers or shared memory were written by the threads
// themselves.
__device__ inline void WarpgroupFence() {
#ifdef FORESIGHT_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Ends a group of products.
__device__ inline void EndProducts() {
#ifdef FORESIGHT_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until all groups but the last kLeft are done.
template <int kLeft>
__device__ inline void AwaitProducts() {
#ifdef FORESIGHT_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}
// The same; `c` are registers that they write: the compiler is kept from moving their use before it.
template <int kLeft, int kCount>
__device__ inline void AwaitProducts(float (&c)[kCount]) {
  AwaitProducts<kLeft>();
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// Makes writes to shared memory visible to products: the thread's own ones, before the barrier that announces
// them, or others', behind that barrier. Either way it lies between write and product, in the thread block
// of the product, which is what the order needs (Lustig, Cooksey and Giroux, Mixed-proxy extensions for the
// NVIDIA PTX memory consistency model, 5.4). It waits for the thread's loads.
__device__ inline void FenceForProducts() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Moves registers between the warpgroups of a block: all four warps take part.
template <int kCount>
__device__ inline void GiveUpRegisters() {
#ifdef FORESIGHT_WGMMA
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ inline void TakeRegisters() {
#ifdef FORESIGHT_WGMMA
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// PTX names every register of a product's sums: their places in its text, and the registers as operands that
// it writes ("=f") or adds to ("+f").
#define FORESIGHT_PLACES_4 "%0, %1, %2, %3"
#define FORESIGHT_PLACES_8 FORESIGHT_PLACES_4 ", %4, %5, %6, %7"
#define FORESIGHT_PLACES_16 FORESIGHT_PLACES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FORESIGHT_PLACES_24 FORESIGHT_PLACES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define FORESIGHT_PLACES_32 FORESIGHT_PLACES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define FORESIGHT_PLACES_64                                                \
  FORESIGHT_PLACES_32                                                      \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, "    \
  "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
  "%59, %60, %61, %62, %63"
#define FORESIGHT_FOUR_SUMS(how, i) how(c[i]), how(c[i + 1]), how(c[i + 2]), how(c[i + 3])
#define FORESIGHT_SUMS_4(how) FORESIGHT_FOUR_SUMS(how, 0)
#define FORESIGHT_SUMS_8(how) FORESIGHT_SUMS_4(how), FORESIGHT_FOUR_SUMS(how, 4)
#define FORESIGHT_SUMS_16(how) \
  FORESIGHT_SUMS_8(how), FORESIGHT_FOUR_SUMS(how, 8), FORESIGHT_FOUR_SUMS(how, 12)
#define FORESIGHT_SUMS_24(how) \
  FORESIGHT_SUMS_16(how), FORESIGHT_FOUR_SUMS(how, 16), FORESIGHT_FOUR_SUMS(how, 20)
#define FORESIGHT_SUMS_32(how) \
  FORESIGHT_SUMS_24(how), FORESIGHT_FOUR_SUMS(how, 24), FORESIGHT_FOUR_SUMS(how, 28)
#define FORESIGHT_SUMS_64(how)                                                                  \
  FORESIGHT_SUMS_32(how), FORESIGHT_FOUR_SUMS(how, 32), FORESIGHT_FOUR_SUMS(how, 36),           \
      FORESIGHT_FOUR_SUMS(how, 40), FORESIGHT_FOUR_SUMS(how, 44), FORESIGHT_FOUR_SUMS(how, 48), \
      FORESIGHT_FOUR_SUMS(how, 52), FORESIGHT_FOUR_SUMS(how, 56), FORESIGHT_FOUR_SUMS(how, 60)

// The text of a product of a shape and types: `count` sums, added to what was there where `adds` isn't 0, of
// the operands at the places `of`, with `flags`.
#define FORESIGHT_PRODUCT_TEXT(shape, count, adds, of, flags)                           \
  "{ .reg .pred add; setp.ne.b32 add, " adds ", 0; wgmma.mma_async.sync.aligned." shape \
  " {" FORESIGHT_PLACES_##count "}, " of ", add" flags "; }"
#ifdef FORESIGHT_WGMMA
#define FORESIGHT_PRODUCT(...) asm volatile(__VA_ARGS__)
#else
#define FORESIGHT_PRODUCT(...)
#endif

// Products that follow are of 64 rows, 8, 16, 32, 48, 64 or 128 columns and a sum over 16, and begin with
// what was there if kAdd, else with zero. Warp w has rows 16 w..16 w + 15; c[4 j + i] of a thread is element
// i of MmaBf16's fragment for columns 8 j..8 j + 7.

// c [64, N] = (kAdd ? c : 0) + a [64, 16] b [16, N]; a and b K-major, bf16.
#define FORESIGHT_MMA_OF_MEMORY(count, columns, of)                                                  \
  template <bool kAdd>                                                                               \
  __device__ inline void WarpgroupMma(float(&c)[count], uint64_t a, uint64_t b) {                    \
    if constexpr (kAdd) {                                                                            \
      FORESIGHT_PRODUCT(                                                                             \
          FORESIGHT_PRODUCT_TEXT("m64n" columns "k16.f32.bf16.bf16", count, "1", of, ", 1, 1, 0, 0") \
          : FORESIGHT_SUMS_##count("+f")                                                             \
          : "l"(a), "l"(b));                                                                         \
    } else {                                                                                         \
      FORESIGHT_PRODUCT(                                                                             \
          FORESIGHT_PRODUCT_TEXT("m64n" columns "k16.f32.bf16.bf16", count, "0", of, ", 1, 1, 0, 0") \
          : FORESIGHT_SUMS_##count("=f")                                                             \
          : "l"(a), "l"(b));                                                                         \
    }                                                                                                \
  }
FORESIGHT_MMA_OF_MEMORY(16, "32", "%16, %17")
FORESIGHT_MMA_OF_MEMORY(24, "48", "%24, %25")
FORESIGHT_MMA_OF_MEMORY(32, "64", "%32, %33")
#undef FORESIGHT_MMA_OF_MEMORY

// c [64, N] += a [64, 16] b [16, N]; a K-major, b with the sum's index along the rows, bf16.
#define FORESIGHT_ADD_VALUES(count, columns, of)                                                   \
  __device__ inline void WarpgroupAddValues(float(&c)[count], uint64_t a, uint64_t b) {            \
    FORESIGHT_PRODUCT(                                                                             \
        FORESIGHT_PRODUCT_TEXT("m64n" columns "k16.f32.bf16.bf16", count, "1", of, ", 1, 1, 0, 1") \
        : FORESIGHT_SUMS_##count("+f")                                                             \
        : "l"(a), "l"(b));                                                                         \
  }
FORESIGHT_ADD_VALUES(16, "32", "%16, %17")
FORESIGHT_ADD_VALUES(32, "64", "%32, %33")
FORESIGHT_ADD_VALUES(64, "128", "%64, %65")
#undef FORESIGHT_ADD_VALUES

// Of products whose a is in registers, the operands behind the sums.
#define FORESIGHT_REGISTERS_AND_MEMORY "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0)

// c [64, N] = (kAdd ? c : 0) + a [64, 16] b [16, N] of f16 (kHalf) or bf16; a in registers as for MmaF16, b
// K-major.
#define FORESIGHT_MMA_OF_REGISTERS(count, columns, of, adds)                                       \
  template <bool kAdd, bool kHalf>                                                                 \
  __device__ inline void WarpgroupMma(float(&c)[count], const uint32_t(&a)[4], uint64_t b) {       \
    if constexpr (kHalf) {                                                                         \
      FORESIGHT_PRODUCT(                                                                           \
          FORESIGHT_PRODUCT_TEXT("m64n" columns "k16.f32.f16.f16", count, adds, of, ", 1, 1, 0")   \
          : FORESIGHT_SUMS_##count("+f")                                                           \
          : FORESIGHT_REGISTERS_AND_MEMORY);                                                       \
    } else {                                                                                       \
      FORESIGHT_PRODUCT(                                                                           \
          FORESIGHT_PRODUCT_TEXT("m64n" columns "k16.f32.bf16.bf16", count, adds, of, ", 1, 1, 0") \
          : FORESIGHT_SUMS_##count("+f")                                                           \
          : FORESIGHT_REGISTERS_AND_MEMORY);                                                       \
    }                                                                                              \
  }
FORESIGHT_MMA_OF_REGISTERS(4, "8", "{%4, %5, %6, %7}, %8", "%9")
FORESIGHT_MMA_OF_REGISTERS(8, "16", "{%8, %9, %10, %11}, %12", "%13")
FORESIGHT_MMA_OF_REGISTERS(16, "32", "{%16, %17, %18, %19}, %20", "%21")
FORESIGHT_MMA_OF_REGISTERS(32, "64", "{%32, %33, %34, %35}, %36", "%37")
FORESIGHT_MMA_OF_REGISTERS(64, "128", "{%64, %65, %66, %67}, %68", "%69")
#undef FORESIGHT_MMA_OF_REGISTERS

// Of a matrix of 8 rows of 8 elements of 16 bits, of which a lane has elements 2t and 2t+1 of row g: those of
// column g.
__device__ inline uint32_t TransposeMatrix(uint32_t of_row) {
  uint32_t of_column;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(of_column) : "r"(of_row));
  return of_column;
}

}  // namespace foresight::cuda
