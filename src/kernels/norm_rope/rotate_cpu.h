// Norm, rotation and the cache encodings of one vector, for the kernels that make queries and keys. To be
// included within cpu/isa_begin.h, after cpu/simd.h.
#pragma once

namespace foresight::FORESIGHT_ISA {
namespace {

// Vectors with the operators of the language: Vec has them already.
using I32 = int32_t __attribute__((vector_size(4 * kLanes)));
using U32 = uint32_t __attribute__((vector_size(4 * kLanes)));
using U8 = uint8_t __attribute__((vector_size(kLanes)));

inline I32 SplatI32(int32_t x) {
  return I32{} + x;
}

// The squares of x in one order, fixed by `count`: four accumulators in turn, the tail last.
inline float SumOfSquares(const float* x, int64_t count) {
  Vec sum[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec v = Load(x + i + k * kLanes);
      sum[k] = Fma(v, v, sum[k]);
    }
  }
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = Load(x + i);
    sum[0] = Fma(v, v, sum[0]);
  }
  if (i < count) {
    const Vec v = LoadPart(x + i, static_cast<int>(count - i));
    sum[1] = Fma(v, v, sum[1]);
  }
  return Sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

inline float InverseRms(const float* x, int64_t dim, float eps) {
  return 1.0f / __builtin_sqrtf(SumOfSquares(x, dim) / static_cast<float>(dim) + eps);
}

// x [count] rounded to bfloat16 in place.
inline void RoundRow(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(x + i, RoundToBf16(Load(x + i)));
  const int left = static_cast<int>(count - i);
  if (left > 0) StorePart(x + i, RoundToBf16(LoadPart(x + i, left)), left);
}

// out = weight * (x / rms(x)), rounded to bf16 when `round`; out may be x. dim is a multiple of 16.
inline void NormRow(const float* x, const VectorView& weight, int64_t dim, float eps, bool round,
                    float* out) {
  const Vec rinv = Set(InverseRms(x, dim, eps));
  const bool wide = weight.dtype == DType::kF32;
  for (int64_t i = 0; i < dim; i += kLanes) {
    const Vec w = wide ? Load(reinterpret_cast<const float*>(weight.data) + i)
                       : LoadBf16(reinterpret_cast<const bf16*>(weight.data) + i);
    const Vec y = w * (Load(x + i) * rinv);
    Store(out + i, round ? RoundToBf16(y) : y);
  }
}

// v [2*pairs], interleaved pairs, turned by the angle with the given cos and sin (model spec 2.1).
inline void RotateRow(float* v, int pairs, const float* cos, const float* sin) {
  for (int i = 0; i < pairs; ++i) {
    const float a = v[2 * i];
    const float b = v[2 * i + 1];
    v[2 * i] = a * cos[i] - b * sin[i];
    v[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

// By minus the angle.
inline void RotateRowBack(float* v, int pairs, const float* cos, const float* sin) {
  for (int i = 0; i < pairs; ++i) {
    const float a = v[2 * i];
    const float b = v[2 * i + 1];
    v[2 * i] = a * cos[i] + b * sin[i];
    v[2 * i + 1] = b * cos[i] - a * sin[i];
  }
}

inline void RopeTableRow(int64_t position, const float* frequencies, int pairs, float* cos, float* sin) {
  for (int i = 0; i < pairs; ++i) {
    // The float32 product is part of the trained behaviour; the angle is reduced in full (model spec 1.3).
    const double angle = static_cast<float>(position) * frequencies[i];
    cos[i] = static_cast<float>(__builtin_cos(angle));
    sin[i] = static_cast<float>(__builtin_sin(angle));
  }
}

inline float ScaleOf(uint8_t e8m0) {  // 2^(e8m0-127), e8m0 in [1, 254]
  const uint32_t bits = static_cast<uint32_t>(e8m0) << 23;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// 1 / ScaleOf, exact; subnormal for the largest.
inline float InverseScaleOf(uint8_t e8m0) {
  return e8m0 == 254 ? 0x1p-127f : ScaleOf(static_cast<uint8_t>(254 - e8m0));
}

inline float MaxAbs(const float* x, int count) {  // count a multiple of 16
  Vec top = Zero();
  for (int i = 0; i < count; i += kLanes) top = Max(Abs(Load(x + i)), top);  // a NaN is passed over
  return MaxLane(top);
}

// The E4M3 codes of x, one per lane (formats.h FloatToE4M3).
inline I32 E4M3Codes(Vec x) {
  const I32 bits = (I32)x;
  const I32 sign = (bits >> 24) & 0x80;
  const Vec a = Abs(x);
  const U32 magnitude = (U32)a;  // a NaN's may go beyond 31 bits
  // Normal: round the mantissa to 3 bits, ties to even, and move the bias from 127 to 7.
  const I32 normal = (I32)((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - (120 << 3);
  // Subnormal: the sum's last mantissa bit is worth 2^-9.
  const I32 subnormal = (I32)(a + 16384.f) - 0x46800000;
  I32 code = a < 0.015625f ? subnormal : normal;
  code = a >= 448.f ? SplatI32(0x7e) : code;
  return a == a ? code | sign : SplatI32(0x7f);  // NOLINT(misc-redundant-expression): false for a NaN
}

// Equals EncodeEntry (tensor/cache_view.h) bit for bit; may round x in place.
inline void EncodeEntryRow(const EntryLayout& layout, float* x, std::byte* out) {
  if (layout.format == CacheFormat::kFloat32) {
    std::memcpy(out, x, static_cast<size_t>(layout.bytes()));
    return;
  }
  const int nope = layout.nope();
  uint8_t* codes = reinterpret_cast<uint8_t*>(out);
  uint8_t* scales = codes + nope + 2 * layout.rope_dim;
  std::memset(scales, 0, static_cast<size_t>(layout.bytes()) - nope - 2 * layout.rope_dim);
  RoundRow(x, layout.dim);
  for (int k = 0; k < nope / 64; ++k) {
    const float* block = x + 64 * k;
    scales[k] = ActQuantScale(MaxAbs(block, 64));
    const float inverse = InverseScaleOf(scales[k]);
    for (int i = 0; i < 64; i += kLanes) {
      const auto code = __builtin_convertvector(E4M3Codes(Load(block + i) * inverse), U8);
      std::memcpy(codes + 64 * k + i, &code, kLanes);
    }
  }
  for (int i = 0; i < layout.rope_dim; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + nope + i, 4);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(codes + nope + 2 * i, &half, 2);
  }
}

// Equals Hadamard (tensor/formats.h) bit for bit; n a power of two, at least 2.
inline void HadamardRow(float* x, int n) {
  for (int half = 1; half < n; half *= 2) {
    for (int base = 0; base < n; base += 2 * half) {
      if (half >= kLanes) {
        for (int i = base; i < base + half; i += kLanes) {
          const Vec a = Load(x + i);
          const Vec b = Load(x + i + half);
          Store(x + i, a + b);
          Store(x + i + half, a - b);
        }
      } else {
        for (int i = base; i < base + half; ++i) {
          const float a = x[i];
          const float b = x[i + half];
          x[i] = a + b;
          x[i + half] = a - b;
        }
      }
    }
  }
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(n));
  for (int i = 0; i < n; ++i) x[i] *= scale;
}

// |x| <= 6 rounded onto the E2M1 grid, ties to the even code; the sign is kept.
inline Vec RoundToE2M1(Vec x) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec a = Abs(x);
  const Vec fine = ((a * 2.f + kMagic) - kMagic) * 0.5f;
  const Vec middle = (a + kMagic) - kMagic;
  const Vec coarse = ((a * 0.5f + kMagic) - kMagic) * 2.f;
  Vec y = a < 2.f ? fine : (a < 4.f ? middle : coarse);
  y = y > 6.f ? Set(6.f) : y;
  return (Vec)((I32)y | ((I32)x & static_cast<int32_t>(0x80000000)));
}

// Equals Fp4RoundTrip with blocks of 32 (tensor/formats.h).
inline void Fp4RoundTripRow(float* x, int count) {
  for (int k = 0; k < count; k += 32) {
    const uint8_t scale = Fp4QuantScale(MaxAbs(x + k, 32));
    const float inverse = InverseScaleOf(scale);
    for (int i = k; i < k + 32; i += kLanes) {
      Store(x + i, RoundToE2M1(Load(x + i) * inverse) * ScaleOf(scale));
    }
  }
}

}  // namespace
}  // namespace foresight::FORESIGHT_ISA
