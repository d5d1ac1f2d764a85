// The number formats on the device; equal to tensor/formats.h value by value.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "tensor/cache_view.h"
#include "tensor/tensor.h"

namespace foresight::cuda {

__device__ inline float Bf16(uint16_t x) {
  return __uint_as_float(static_cast<uint32_t>(x) << 16);
}

__device__ inline float RoundBf16(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

__device__ inline uint16_t Bf16Bits(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

// Two bf16 values in one word.
__device__ inline uint32_t PackBf16(float low, float high) {
  return Bf16Bits(low) | static_cast<uint32_t>(Bf16Bits(high)) << 16;
}

__device__ inline float2 UnpackBf16(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000)};
}

// 2^(byte-127); byte 0 is the subnormal 2^-127, byte 255 NaN.
__device__ inline float E8M0(uint8_t byte) {
  const uint32_t bits = byte == 0 ? 0x00400000 : static_cast<uint32_t>(byte) << 23;
  return __uint_as_float(byte == 255 ? 0x7fc00000 : bits);
}

__device__ inline float E4M3(uint8_t byte) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(byte, __NV_E4M3)));
}

// Round to nearest, ties to even, saturating at +-448.
__device__ inline uint8_t ToE4M3(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

__device__ inline float E2M1(uint32_t code) {
  // Exponent and mantissa bits moved to a float32's place; 2^126 moves the bias.
  const float magnitude = __uint_as_float((code & 7) << 22) * 0x1p126f;
  return __uint_as_float(__float_as_uint(magnitude) | (code & 8) << 28);
}

// act_quant's scale for a block with the given max|x| (model spec 2.1), as an E8M0 byte.
__device__ inline uint8_t ActQuantScale(float amax) {
  const float scale = fmaxf(amax, 1e-4f) * (1.0f / 448.0f);
  const uint32_t bits = __float_as_uint(scale);
  return static_cast<uint8_t>((bits >> 23) + ((bits & 0x7fffff) != 0));
}

// The nearest E2M1 code, ties to the even code, saturating at +-6.
__device__ inline uint32_t ToE2M1(float x) {
  const float a = fabsf(x);
  const int code =
      (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
  return static_cast<uint32_t>(code) | __float_as_uint(x) >> 28 & 8;
}

// fp4_quant's scale for a block with the given max|x| (model spec 2.1), as an E8M0 byte.
__device__ inline uint8_t Fp4QuantScale(float amax) {
  const uint32_t bits = __float_as_uint(fmaxf(amax, 6.0f * 0x1p-126f) / 6.0f);
  const uint32_t byte = (bits >> 23) + ((bits & 0x7fffff) != 0);
  return static_cast<uint8_t>(byte < 254 ? byte : 254);
}

// Value i of a cache entry.
__device__ inline float EntryValue(const EntryLayout& layout, const std::byte* entry, int i) {
  if (layout.format == CacheFormat::kFloat32) return reinterpret_cast<const float*>(entry)[i];
  const int nope = layout.dim - layout.rope_dim;
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(entry);
  if (i >= nope) return Bf16(reinterpret_cast<const uint16_t*>(codes + nope)[i - nope]);
  return E4M3(codes[i]) * E8M0(codes[nope + 2 * layout.rope_dim + i / 64]);
}

__device__ inline float VectorValue(const VectorView& v, int64_t i) {
  return v.dtype == DType::kF32 ? reinterpret_cast<const float*>(v.data)[i]
                                : Bf16(reinterpret_cast<const uint16_t*>(v.data)[i]);
}

}  // namespace foresight::cuda
