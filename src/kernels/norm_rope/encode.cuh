// Rotation and cache encodings of one vector by one thread block, for the kernels that make keys. The
// vector lies in shared memory; functions named so are called by the first `threads` of a block, whole warps
// which are all that is left of it, after a barrier.
#pragma once

#include "kernels/cuda/formats.cuh"
#include "kernels/cuda/reduce.cuh"

namespace foresight::cuda {

// cos and sin of float32(position) * frequency. The float32 product is part of the trained behaviour; the
// angle is reduced in full (model spec 1.3).
struct AngleOf {
  __device__ AngleOf(int64_t position, float frequency) {
    const double angle = __fmul_rn(static_cast<float>(position), frequency);
    double s, c;
    sincos(angle, &s, &c);
    cos = static_cast<float>(c);
    sin = static_cast<float>(s);
  }
  float cos;
  float sin;
};

// (a, b) turned by the angle with the given cos and sin; the same bits wherever it is compiled.
__device__ inline float2 Turned(float2 v, float cos, float sin) {
  return {__fmaf_rn(v.x, cos, -__fmul_rn(v.y, sin)), __fmaf_rn(v.x, sin, __fmul_rn(v.y, cos))};
}

// EncodeEntry of tensor/cache_view.h.
__device__ inline void EncodeEntryShared(const EntryLayout& layout, const float* x, std::byte* out,
                                         int threads) {
  if (layout.format == CacheFormat::kFloat32) {
    float* to = reinterpret_cast<float*>(out);
    for (int i = threadIdx.x; i < layout.dim; i += threads) to[i] = x[i];
    return;
  }
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int warps = threads / 32;
  const int nope = layout.dim - layout.rope_dim;
  const int blocks = nope / 64;
  uint8_t* codes = reinterpret_cast<uint8_t*>(out);
  uint8_t* scales = codes + nope + 2 * layout.rope_dim;
  for (int k = warp; k < blocks; k += warps) {
    const float a = RoundBf16(x[64 * k + 2 * lane]);
    const float b = RoundBf16(x[64 * k + 2 * lane + 1]);
    const uint8_t scale_byte = ActQuantScale(WarpMax(fmaxf(fabsf(a), fabsf(b))));
    const float scale = E8M0(scale_byte);
    codes[64 * k + 2 * lane] = ToE4M3(a / scale);
    codes[64 * k + 2 * lane + 1] = ToE4M3(b / scale);
    if (lane == 0) scales[k] = scale_byte;
  }
  for (int k = blocks + threadIdx.x; k < (blocks + 7) / 8 * 8; k += threads) scales[k] = 0;
  uint16_t* rope = reinterpret_cast<uint16_t*>(codes + nope);
  for (int i = threadIdx.x; i < layout.rope_dim; i += threads) rope[i] = Bf16Bits(x[nope + i]);
}

// The same of a vector whose values 2i and 2i + 1 are `v` of the block's thread i.
__device__ inline void EncodeEntryPairs(const EntryLayout& layout, int pair, float2 v, std::byte* out) {
  const int pairs = layout.dim / 2;
  if (layout.format == CacheFormat::kFloat32) {
    if (pair < pairs) reinterpret_cast<float2*>(out)[pair] = v;
    return;
  }
  const int nope = layout.dim - layout.rope_dim;
  uint8_t* codes = reinterpret_cast<uint8_t*>(out);
  uint8_t* scales = codes + nope + 2 * layout.rope_dim;
  v = {RoundBf16(v.x), RoundBf16(v.y)};
  if (pair < nope / 2) {  // whole warps
    const uint8_t scale_byte = ActQuantScale(WarpMax(fmaxf(fabsf(v.x), fabsf(v.y))));
    const float scale = E8M0(scale_byte);
    const uint32_t both = ToE4M3(v.x / scale) | static_cast<uint32_t>(ToE4M3(v.y / scale)) << 8;
    reinterpret_cast<uint16_t*>(codes)[pair] = static_cast<uint16_t>(both);
    if (pair % 32 == 0) scales[pair / 32] = scale_byte;
  } else if (pair < pairs) {
    reinterpret_cast<uint32_t*>(codes + nope)[pair - nope / 2] = Bf16Bits(v.x) | Bf16Bits(v.y) << 16;
  }
  const int blocks = nope / 64;
  if (pair >= blocks && pair < (blocks + 7) / 8 * 8) scales[pair] = 0;
}

// Hadamard of tensor/formats.h, with its roundings.
__device__ inline void HadamardShared(float* x, int dim, int threads) {
  for (int half = 1; half < dim; half *= 2) {
    for (int i = threadIdx.x; i < dim / 2; i += threads) {
      const int at = i / half * 2 * half + i % half;
      const float a = x[at];
      const float b = x[at + half];
      x[at] = a + b;
      x[at + half] = a - b;
    }
    __syncthreads();
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(dim));
  for (int i = threadIdx.x; i < dim; i += threads) x[i] *= scale;
  __syncthreads();
}

// The scale of each 32 values of x, one value per lane, as an E8M0 byte.
__device__ inline uint8_t Fp4ScaleOfWarp(float x) {
  return Fp4QuantScale(WarpMax(fabsf(x)));
}

// EncodeIndexKey of tensor/cache_view.h; for packed keys x is transformed already.
__device__ inline void EncodeIndexKeyShared(const IndexKeyLayout& layout, const float* x, std::byte* out,
                                            int threads) {
  if (layout.format == CacheFormat::kFloat32) {
    float* to = reinterpret_cast<float*>(out);
    for (int i = threadIdx.x; i < layout.dim; i += threads) to[i] = x[i];
    return;
  }
  const int lane = threadIdx.x % 32;
  uint8_t* codes = reinterpret_cast<uint8_t*>(out);
  uint8_t* scales = codes + layout.dim / 2;
  for (int k = threadIdx.x / 32; k < layout.dim / 32; k += threads / 32) {
    const float v = RoundBf16(x[32 * k + lane]);
    const uint8_t scale = Fp4ScaleOfWarp(v);
    const uint32_t code = ToE2M1(v / E8M0(scale));
    const uint32_t next = __shfl_down_sync(0xffffffff, code, 1);
    if (lane % 2 == 0) codes[(32 * k + lane) / 2] = static_cast<uint8_t>(code | next << 4);
    if (lane == 0) scales[k] = scale;
  }
}

}  // namespace foresight::cuda
