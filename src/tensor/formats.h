// The number formats of the checkpoint and of the caches, one value at a time: the definitions that every
// fast decoder is held to (model spec 2.1, 3.2, appendix A).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace foresight {

using bf16 = uint16_t;  // the upper half of a float32

inline float Bf16ToFloat(bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 FloatToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<bf16>((bits >> 16) | 0x40);
  return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float RoundBf16(float x) {
  return Bf16ToFloat(FloatToBf16(x));
}

// 2^(byte-127); byte 0 is the subnormal 2^-127, byte 255 is NaN.
float E8M0ToFloat(uint8_t byte);

float E4M3ToFloat(uint8_t byte);
// Round to nearest, ties to even, saturating at +-448; NaN becomes 0x7F.
uint8_t FloatToE4M3(float x);

// Codes 0..15: bit 3 is the sign, bits 0..2 index {0, .5, 1, 1.5, 2, 3, 4, 6}.
float E2M1ToFloat(uint8_t code);
// Round to nearest, ties to the even code, saturating at +-6.
uint8_t FloatToE2M1(float x);

// The E8M0 byte of act_quant's scale for a block with the given max|x| (model spec 2.1):
// 2^ceil(log2(max(amax, 1e-4) * float32(1/448))), from the bit pattern.
uint8_t ActQuantScale(float amax);
// The E8M0 byte of fp4_quant's scale: 2^ceil(log2(max(amax, 6*2^-126) / 6)).
uint8_t Fp4QuantScale(float amax);

// x rounded through FP8 (E4M3) with one scale per `block` values, in place. count is a multiple of block.
void ActQuantRoundTrip(float* x, int count, int block);
// x rounded through FP4 (E2M1) with one scale per `block` values, in place.
void Fp4RoundTrip(float* x, int count, int block);

// y_i = n^-0.5 * sum_j (-1)^popcount(i&j) x_j, in place; n is a power of two. Orthogonal and symmetric.
void Hadamard(float* x, int n);

}  // namespace foresight
