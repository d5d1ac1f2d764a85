// How stored weights become operands of the tensor cores.
//
// Sums run over blocks of 128 columns. Within a block, each of the four lanes that share a row loads 16 bytes
// at a time (kValues neighbours in K) and feeds them to the multiplication as they lie, with no exchange
// between lanes: the order in which the K of a block meet is a permutation, which Source() tells to whoever
// prepares the activations. Eight steps of 16 make up a block; a lane contributes four values to each.
//
// Decoded values are exact in bf16 up to a power of two, which BlockFactor() puts back on the block's sum.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>

#include "kernels/cuda/formats.cuh"

namespace foresight::cuda {

constexpr int kBlockK = 128;
constexpr int kBlockSteps = kBlockK / 16;

// Exact here: factors are powers of two, and neither operand nor result leaves the normal numbers, but for
// operands that are subnormal, which bf16 multiplications keep.
__device__ inline uint32_t MulBf16x2(uint32_t a, uint32_t b) {
  __nv_bfloat162 x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  x = __hmul2(x, y);
  memcpy(&a, &x, 4);
  return a;
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

struct Bf16Weights {
  static constexpr DType kDType = DType::kBF16;
  static constexpr int kValues = 8;  // in 16 bytes

  __host__ __device__ static int64_t Bytes(int64_t values) { return 2 * values; }
  __host__ __device__ static int Source(Slot s) {
    return s.step / 2 * 32 + s.lane * 8 + s.step % 2 * 4 + s.index;
  }
  // For a lane's 16 bytes of row `row` at column k.
  __device__ static uint32_t DecodeFactor(const uint8_t*, int64_t, int64_t, int64_t) { return 0; }
  // Step `step` of the 16 bytes: the lane's pairs in the left and the right half of A.
  __device__ static void Decode(const uint32_t (&words)[4], int step, uint32_t, uint32_t& left,
                                uint32_t& right) {
    left = words[2 * step];
    right = words[2 * step + 1];
  }
  __device__ static float BlockFactor(const uint8_t*, int64_t, int64_t, int64_t) { return 1; }
};

struct Fp8Weights {
  static constexpr DType kDType = DType::kF8E4M3;
  static constexpr int kValues = 16;

  __host__ __device__ static int64_t Bytes(int64_t values) { return values; }
  __host__ __device__ static int Source(Slot s) {
    const int in_word = (s.index & 1) << 1 | s.index >> 1;  // bytes 0, 2, 1, 3
    return s.step / 4 * 64 + s.lane * 16 + s.step % 4 * 4 + in_word;
  }
  __device__ static uint32_t DecodeFactor(const uint8_t*, int64_t, int64_t, int64_t) {
    return 0x7b807b80;  // 2^120: between the exponents' biases, 7 and 127
  }
  // E4M3's seven lower bits moved under bf16's exponent are the value times 2^-120, subnormals included. The
  // codes of NaN read as +-480; no checkpoint has them.
  __device__ static void Decode(const uint32_t (&words)[4], int step, uint32_t factor, uint32_t& left,
                                uint32_t& right) {
    const uint32_t w = words[step];
    left = MulBf16x2(((w << 8) & 0x80008000) | ((w << 4) & 0x07f007f0), factor);
    right = MulBf16x2((w & 0x80008000) | ((w >> 4) & 0x07f007f0), factor);
  }
  __device__ static float BlockFactor(const uint8_t* scales, int64_t row, int64_t block, int64_t scale_cols) {
    return E8M0(__ldg(scales + row / 128 * scale_cols + block));
  }
};

struct Mxfp4Weights {
  static constexpr DType kDType = DType::kI8;
  static constexpr int kValues = 32;  // one scale's

  __host__ __device__ static int64_t Bytes(int64_t values) { return values / 2; }
  __host__ __device__ static int Source(Slot s) {
    const int in_word = (s.step & 1) * 2 + (s.index >> 1) + (s.index & 1) * 4;  // nibbles i and i + 4 pair up
    return s.lane * 32 + s.step / 2 * 8 + in_word;
  }
  // E2M1's three lower bits under bf16's exponent are the value times 2^-126. The factor brings that to
  // value * scale * 2^-64, so that it is a bf16 for scales of 2^-60 to 2^65.
  __device__ static uint32_t DecodeFactor(const uint8_t* scales, int64_t row, int64_t k, int64_t scale_cols) {
    const uint32_t bits = (static_cast<uint32_t>(__ldg(scales + row * scale_cols + k / 32)) + 62) << 7;
    return bits << 16 | bits;
  }
  __device__ static void Decode(const uint32_t (&words)[4], int step, uint32_t factor, uint32_t& left,
                                uint32_t& right) {
    const uint32_t w = words[step / 2];
    if (step % 2 == 0) {
      left = MulBf16x2(((w << 12) & 0x80008000) | ((w << 6) & 0x01c001c0), factor);
      right = MulBf16x2(((w << 8) & 0x80008000) | ((w << 2) & 0x01c001c0), factor);
    } else {
      left = MulBf16x2(((w << 4) & 0x80008000) | ((w >> 2) & 0x01c001c0), factor);
      right = MulBf16x2((w & 0x80008000) | ((w >> 6) & 0x01c001c0), factor);
    }
  }
  __device__ static float BlockFactor(const uint8_t*, int64_t, int64_t, int64_t) { return 0x1p64f; }
};

}  // namespace foresight::cuda
