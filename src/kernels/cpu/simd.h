// One vector type and the operations on it, for the instruction set of this compilation (isa_begin.h).
//
// `Vec` holds kLanes floats: 16 (avx512) or 8 (avx2). Everything is in an anonymous namespace, so the two
// compilations never share a function. Sums over lanes use one fixed tree: halves are added until one lane is
// left.
#pragma once

namespace foresight::FORESIGHT_ISA {
namespace {

#ifdef FORESIGHT_AVX512

constexpr int kLanes = 16;
using Vec = __m512;
using IntVec = __m512i;

inline Vec Zero() {
  return _mm512_setzero_ps();
}
inline Vec Set(float x) {
  return _mm512_set1_ps(x);
}
inline IntVec SetInt(int x) {
  return _mm512_set1_epi32(x);
}
inline Vec Load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline void Store(float* p, Vec v) {
  _mm512_storeu_ps(p, v);
}
inline __mmask16 FirstLanes(int n) {
  return static_cast<__mmask16>((1u << n) - 1);
}
// The first n < kLanes values, zero behind them; nothing else is read or written.
inline Vec LoadPart(const float* p, int n) {
  return _mm512_maskz_loadu_ps(FirstLanes(n), p);
}
inline void StorePart(float* p, Vec v, int n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), v);
}

inline Vec Add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
inline Vec Sub(Vec a, Vec b) {
  return _mm512_sub_ps(a, b);
}
inline Vec Mul(Vec a, Vec b) {
  return _mm512_mul_ps(a, b);
}
inline Vec Div(Vec a, Vec b) {
  return _mm512_div_ps(a, b);
}
// A NaN in `a` gives b, a NaN in `b` gives b.
inline Vec Max(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
inline Vec Min(Vec a, Vec b) {
  return _mm512_min_ps(a, b);
}
inline Vec Fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}  // a * b + c
inline Vec Round(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline IntVec Bits(Vec a) {
  return _mm512_castps_si512(a);
}
inline Vec FromBits(IntVec a) {
  return _mm512_castsi512_ps(a);
}
inline IntVec And(IntVec a, IntVec b) {
  return _mm512_and_si512(a, b);
}
inline IntVec Or(IntVec a, IntVec b) {
  return _mm512_or_si512(a, b);
}
inline IntVec AddInt(IntVec a, IntVec b) {
  return _mm512_add_epi32(a, b);
}
inline IntVec MaxInt(IntVec a, IntVec b) {
  return _mm512_max_epi32(a, b);
}
template <int n>
inline IntVec ShiftLeft(IntVec a) {
  return _mm512_slli_epi32(a, n);
}
template <int n>
inline IntVec ShiftRight(IntVec a) {
  return _mm512_srli_epi32(a, n);
}
inline IntVec ToInt(Vec a) {
  return _mm512_cvtps_epi32(a);
}  // to nearest
// kLanes bytes or 16-bit words, zero-extended.
inline IntVec LoadBytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline IntVec LoadWords(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The low 16 bits of every lane.
inline void StoreWords(uint16_t* p, IntVec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
}
// a where x is not a NaN, b where it is.
inline IntVec SelectNan(Vec x, IntVec a, IntVec b) {
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), a, b);
}
inline __m256 LowHalf(Vec v) {
  return _mm512_castps512_ps256(v);
}
inline __m256 HighHalf(Vec v) {
  return _mm512_extractf32x8_ps(v, 1);
}

#else  // avx2

constexpr int kLanes = 8;
using Vec = __m256;
using IntVec = __m256i;

inline Vec Zero() {
  return _mm256_setzero_ps();
}
inline Vec Set(float x) {
  return _mm256_set1_ps(x);
}
inline IntVec SetInt(int x) {
  return _mm256_set1_epi32(x);
}
inline Vec Load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void Store(float* p, Vec v) {
  _mm256_storeu_ps(p, v);
}
inline IntVec FirstLanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec LoadPart(const float* p, int n) {
  return _mm256_maskload_ps(p, FirstLanes(n));
}
inline void StorePart(float* p, Vec v, int n) {
  _mm256_maskstore_ps(p, FirstLanes(n), v);
}

inline Vec Add(Vec a, Vec b) {
  return _mm256_add_ps(a, b);
}
inline Vec Sub(Vec a, Vec b) {
  return _mm256_sub_ps(a, b);
}
inline Vec Mul(Vec a, Vec b) {
  return _mm256_mul_ps(a, b);
}
inline Vec Div(Vec a, Vec b) {
  return _mm256_div_ps(a, b);
}
inline Vec Max(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
inline Vec Min(Vec a, Vec b) {
  return _mm256_min_ps(a, b);
}
inline Vec Fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec Round(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline IntVec Bits(Vec a) {
  return _mm256_castps_si256(a);
}
inline Vec FromBits(IntVec a) {
  return _mm256_castsi256_ps(a);
}
inline IntVec And(IntVec a, IntVec b) {
  return _mm256_and_si256(a, b);
}
inline IntVec Or(IntVec a, IntVec b) {
  return _mm256_or_si256(a, b);
}
inline IntVec AddInt(IntVec a, IntVec b) {
  return _mm256_add_epi32(a, b);
}
inline IntVec MaxInt(IntVec a, IntVec b) {
  return _mm256_max_epi32(a, b);
}
template <int n>
inline IntVec ShiftLeft(IntVec a) {
  return _mm256_slli_epi32(a, n);
}
template <int n>
inline IntVec ShiftRight(IntVec a) {
  return _mm256_srli_epi32(a, n);
}
inline IntVec ToInt(Vec a) {
  return _mm256_cvtps_epi32(a);
}
inline IntVec LoadBytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline IntVec LoadWords(const uint16_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void StoreWords(uint16_t* p, IntVec a) {
  const IntVec low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
  const IntVec packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline IntVec SelectNan(Vec x, IntVec a, IntVec b) {
  return _mm256_blendv_epi8(a, b, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}

#endif

inline Vec Abs(Vec a) {
  return FromBits(And(Bits(a), SetInt(0x7fffffff)));
}

inline __m128 Halves(__m256 v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

// The sum of all lanes: lane i + lane i + kLanes/2, and so on down to one.
inline float Sum(Vec v) {
#ifdef FORESIGHT_AVX512
  const __m128 a = Halves(_mm256_add_ps(LowHalf(v), HighHalf(v)));
#else
  const __m128 a = Halves(v);
#endif
  const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

inline float MaxLane(Vec v) {
#ifdef FORESIGHT_AVX512
  const __m256 h = _mm256_max_ps(LowHalf(v), HighHalf(v));
#else
  const __m256 h = v;
#endif
  const __m128 a = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

// bf16 -> float and back; the rounding is FloatToBf16's, bit for bit (subnormals and NaN included).
inline Vec LoadBf16(const bf16* p) {
  return FromBits(ShiftLeft<16>(LoadWords(p)));
}
inline IntVec Bf16Words(Vec v) {
  const IntVec bits = Bits(v);
  const IntVec odd = And(ShiftRight<16>(bits), SetInt(1));
  const IntVec rounded = AddInt(AddInt(bits, SetInt(0x7fff)), odd);
  return ShiftRight<16>(SelectNan(v, rounded, Or(bits, SetInt(0x400000))));
}
inline void StoreBf16(bf16* p, Vec v) {
  StoreWords(p, Bf16Words(v));
}
inline Vec RoundToBf16(Vec v) {
  return FromBits(ShiftLeft<16>(Bf16Words(v)));
}

// e4m3 -> float, exact but for the NaN codes, which give +-480 (the formats' NaN never occurs in data that we
// wrote, and a checkpoint that holds one is refused).
inline Vec LoadE4M3(const uint8_t* p) {
  const IntVec bytes = LoadBytes(p);
  const IntVec magnitude = ShiftLeft<20>(And(bytes, SetInt(0x7f)));
  const IntVec sign = ShiftLeft<24>(And(bytes, SetInt(0x80)));
  // As a float32 pattern the exponent is 120 too small, for subnormals too.
  return Mul(FromBits(Or(magnitude, sign)), Set(0x1p120f));
}

// x rounded to the values of e4m3 (nearest, ties to even), saturating at +-448.
inline Vec RoundToE4M3(Vec x) {
  x = Max(Set(-448.0f), Min(Set(448.0f), x));  // in this order a NaN passes
  // Adding and subtracting 1.5 * 2^(20+e), e = max(exponent, -6), leaves three bits behind the leading one.
  const IntVec exponent = MaxInt(And(Bits(x), SetInt(0x7f800000)), SetInt(121 << 23));
  const Vec magic = FromBits(AddInt(exponent, SetInt((20 << 23) | 0x400000)));
  return Sub(Add(x, magic), magic);
}

// exp(x), within 2 ulp for x in [-87, 88]; 0 below, +inf above; NaN stays NaN.
inline Vec Exp(Vec x) {
  const Vec clamped = Max(Set(-104.0f), Min(Set(89.0f), x));
  const Vec n = Round(Mul(clamped, Set(1.44269504f)));
  // x - n ln 2 in two steps; the first constant has few bits, so its product with n is exact.
  Vec r = Fma(n, Set(-0.693359375f), clamped);
  r = Fma(n, Set(2.12194440e-4f), r);
  // e^r on [-0.35, 0.35]: the Taylor polynomial of degree 7, error 1e-8 relative.
  Vec p = Set(1.0f / 5040);
  p = Fma(p, r, Set(1.0f / 720));
  p = Fma(p, r, Set(1.0f / 120));
  p = Fma(p, r, Set(1.0f / 24));
  p = Fma(p, r, Set(1.0f / 6));
  p = Fma(p, r, Set(0.5f));
  p = Fma(p, r, Set(1.0f));
  p = Fma(p, r, Set(1.0f));
  // 2^n as two factors, so that neither leaves the exponent range.
  const IntVec i = ToInt(n);
#ifdef FORESIGHT_AVX512
  const IntVec half = _mm512_srai_epi32(i, 1);
  const IntVec rest = _mm512_sub_epi32(i, half);
#else
  const IntVec half = _mm256_srai_epi32(i, 1);
  const IntVec rest = _mm256_sub_epi32(i, half);
#endif
  const Vec low = FromBits(ShiftLeft<23>(AddInt(half, SetInt(127))));
  const Vec high = FromBits(ShiftLeft<23>(AddInt(rest, SetInt(127))));
  return Mul(Mul(p, low), high);
}

// The sums of four vectors, each by the tree of Sum().
inline __m128 SumFour(Vec a, Vec b, Vec c, Vec d) {
#ifdef FORESIGHT_AVX512
  const Vec ab = Add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  const Vec cd = Add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  // ab = a in the lower half, b in the upper; now one 128-bit lane each.
  const Vec abcd = Add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const Vec pairs = Add(abcd, _mm512_permute_ps(abcd, 0x4e));
  const Vec sums = Add(pairs, _mm512_permute_ps(pairs, 0xb1));
  const __m512i first_of_each = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_each, sums));
#else
  const __m128 ha = Halves(a);
  const __m128 hb = Halves(b);
  const __m128 hc = Halves(c);
  const __m128 hd = Halves(d);
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(ha, hb), _mm_movehl_ps(hb, ha));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(hc, hd), _mm_movehl_ps(hd, hc));
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
#endif
}

}  // namespace
}  // namespace foresight::FORESIGHT_ISA
