// How stored weights become operands of the tensor cores.
//
// Sums run over blocks of 128 columns. Within a block, each of the four lanes that share a row loads 16 bytes
// at a time (kValues neighbours in K) and feeds them to the multiplication as they lie, with no exchange
// between lanes: the order in which the K of a block meet is a permutation, which Source() tells to whoever
// prepares the activations. Eight steps of 16 make up a block; a lane contributes four values to each.
//
// BF16 weights are multiplied as they are, with bf16 activations. FP8 and MXFP4 become f16, the cheapest to
// make of them (kHalf), and so do their activations, each block of a row by a power of two of its own.
// Decoded values are exact up to a power of two; both powers come back in the block's sum.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>

#include "device/cuda/fp4_codes.h"
#include "kernels/cuda/formats.cuh"

namespace foresight::cuda {

constexpr int kBlockK = 128;
constexpr int kBlockSteps = kBlockK / 16;

__device__ inline uint32_t MulHalves(uint32_t a, uint32_t b) {
  __half2 x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  x = __hmul2(x, y);
  memcpy(&a, &x, 4);
  return a;
}

__device__ inline uint32_t PackHalves(float low, float high) {
  const __half2 x = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Two values rounded to E4M3 (ToE4M3), as f16.
__device__ inline uint32_t E4M3Halves(float low, float high) {
  const __half2_raw x = __nv_cvt_fp8x2_to_halfraw2(
      __nv_cvt_float2_to_fp8x2(float2{low, high}, __NV_SATFINITE, __NV_E4M3), __NV_E4M3);
  return x.x | static_cast<uint32_t>(x.y) << 16;
}

// Four E4M3 codes as f16: bytes 0 and 1, and 2 and 3.
__device__ inline void HalvesOfE4M3(uint32_t w, uint32_t& left, uint32_t& right) {
#if __CUDA_ARCH__ >= 890
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n"
      "}"
      : "=r"(left), "=r"(right)
      : "r"(w));
#else
  // The seven lower bits under f16's exponent are the value times 2^-8, subnormals included. The codes of NaN
  // read as +-480; no checkpoint has them.
  const uint32_t low = __byte_perm(w, 0, 0x1404);
  const uint32_t high = __byte_perm(w, 0, 0x3424);
  left = MulHalves((low & 0x80008000) | ((low >> 1) & 0x3f803f80), 0x5c005c00);
  right = MulHalves((high & 0x80008000) | ((high >> 1) & 0x3f803f80), 0x5c005c00);
#endif
}

// Where a value of the prepared order stands: value `index` of lane `lane`'s four in step `step`.
struct Slot {
  int step;
  int lane;
  int index;
};

// The prepared order of a block: two steps of one lane lie together, 16 bytes of bf16.
__host__ __device__ inline Slot SlotOf(int position) {
  return {position / 32 * 2 + position % 8 / 4, position % 32 / 8, position % 4};
}

// Of one row in one block: what decoding multiplies by, and what the block's sum does.
struct RowScale {
  uint32_t decode;
  float block;
};

// The column of a block whose scale is lane t's.
template <typename Format>
__device__ inline int ScaleColumn(int t) {
  return t * Format::kValues / Format::kScaleValues * Format::kScaleValues;
}

struct Bf16Weights {
  static constexpr DType kDType = DType::kBF16;
  static constexpr int kValues = 8;         // in 16 bytes
  static constexpr int kScaleValues = 128;  // in a row, of one scale
  static constexpr bool kHalf = false;
  static constexpr bool kHasScales = false;

  __host__ __device__ static constexpr int64_t Bytes(int64_t values) { return 2 * values; }
  __host__ __device__ static int Source(Slot s) {
    return s.step / 2 * 32 + s.lane * 8 + s.step % 2 * 4 + s.index;
  }
  // Of the scale of row `row` at column k.
  template <typename Int>
  __host__ __device__ static constexpr Int ScaleIndex(Int, Int, Int) {
    return 0;
  }
  // Of a lane's row, from the scale at ScaleColumn() of the block; all lanes together.
  __device__ static RowScale Scale(uint8_t) { return {0, 1}; }
  // Step `step` of the 16 bytes: the lane's pairs in the left and the right half of A.
  __device__ static void Decode(const uint32_t (&words)[4], int step, uint32_t, uint32_t& left,
                                uint32_t& right) {
    left = words[2 * step];
    right = words[2 * step + 1];
  }
};

struct Fp8Weights {
  static constexpr DType kDType = DType::kF8E4M3;
  static constexpr int kValues = 16;
  static constexpr int kScaleValues = 128;
  static constexpr bool kHalf = true;
  static constexpr bool kHasScales = true;

  __host__ __device__ static constexpr int64_t Bytes(int64_t values) { return values; }
  __host__ __device__ static int Source(Slot s) {
    return s.step / 4 * 64 + s.lane * 16 + s.step % 4 * 4 + s.index;
  }
  template <typename Int>
  __host__ __device__ static constexpr Int ScaleIndex(Int row, Int k, Int scale_cols) {
    return row / 128 * scale_cols + k / 128;
  }
  __device__ static RowScale Scale(uint8_t scale) { return {0, E8M0(scale)}; }
  __device__ static void Decode(const uint32_t (&words)[4], int step, uint32_t, uint32_t& left,
                                uint32_t& right) {
    HalvesOfE4M3(words[step], left, right);
  }
};

struct Mxfp4Weights {
  static constexpr DType kDType = DType::kI8;
  static constexpr int kValues = 32;
  static constexpr int kScaleValues = 32;
  static constexpr bool kHalf = true;
  static constexpr bool kHasScales = true;

  __host__ __device__ static constexpr int64_t Bytes(int64_t values) { return values / 2; }
  __host__ __device__ static int Source(Slot s) {
    return s.lane * 32 + s.step / 2 * 8 + 2 * s.index +
           s.step % 2;  // the bytes' first codes, then the second
  }
  template <typename Int>
  __host__ __device__ static constexpr Int ScaleIndex(Int row, Int k, Int scale_cols) {
    return row * scale_cols + k / 32;
  }
  // E2M1 in E4M3's place is the value times 2^-6. Decoding multiplies by 2^14 and the scale over the
  // largest of the row's four: an exact f16 for scales down to 2^-28 of the largest, and zero below.
  __device__ static RowScale Scale(uint8_t scale) {
    int largest = scale;
    largest = max(largest, __shfl_xor_sync(0xffffffff, largest, 1));
    largest = max(largest, __shfl_xor_sync(0xffffffff, largest, 2));
    return {Factor(static_cast<uint32_t>(largest - scale)), BlockFactor(static_cast<uint32_t>(largest))};
  }
  // What decoding multiplies by, for a scale of 2^-below of the largest: 2^(14 - below), twice.
  __device__ static uint32_t Factor(uint32_t below) { return 0x74007400u - min(below, 29u) * 0x04000400u; }
  // Of the lower half of LargestScale(): E8M0 times 2^-8.
  __device__ static float BlockFactor(uint32_t largest) {
    const float scale = __uint_as_float(max(largest << 23, 0x00400000u));  // 2^-127 is no normal number
    return __fmaf_rn(scale, 0x1p-8f, __fsub_rn(scale, scale));             // 255 is not a number
  }
  // The largest of four scales, in both halves of the result.
  __device__ static uint32_t LargestScale(uint32_t word) {
    const uint32_t of_two = __vmaxu2(word & 0x00ff00ff, word >> 8 & 0x00ff00ff);
    return __vmaxu2(of_two, __byte_perm(of_two, 0, 0x1032));
  }
  // Factor() of each of four scales: byte i is the upper one of scale i's halves, and their lower one is
  // zero. `largest` as from LargestScale().
  __device__ static uint32_t Factors(uint32_t word, uint32_t largest) {
    const uint32_t even = __vminu2(largest - (word & 0x00ff00ff), 0x001d001d);
    const uint32_t odd = __vminu2(largest - (word >> 8 & 0x00ff00ff), 0x001d001d);
    return 0x74747474u - even * 0x0004u - odd * 0x0400u;
  }
  __device__ static uint32_t FactorOf(uint32_t factors, int i) {
    return __byte_perm(factors, 0, 0x0404 + i * 0x1010);
  }
  __device__ static void Decode(const uint32_t (&words)[4], int step, uint32_t factor, uint32_t& left,
                                uint32_t& right) {
    constexpr uint32_t kOnes = 0x01010101;
    const uint32_t arranged = words[step / 2];
    HalvesOfE4M3(step % 2 == 0 ? FirstInE4M3(arranged, kOnes) : SecondInE4M3(arranged, kOnes), left, right);
    left = MulHalves(left, factor);
    right = MulHalves(right, factor);
  }
};

}  // namespace foresight::cuda
