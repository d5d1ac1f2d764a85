// How stored weights and activations become operands of the dot product, per instruction set.
//
// K is walked in blocks of 128. A format decodes a block of one weight row, group by group, into operand
// vectors with the scale folded in, so that behind the decoder every format is the same product. Two kinds of
// operands:
//
//   Bf16Pairs (avx512)  32 bf16 values, multiplied by vdpbf16ps into 16 float32 sums. A decoded FP8 or MXFP4
//   weight is a
//                       bf16 value exactly, as long as its magnitude is within 2^-126 .. 2^127; smaller ones
//                       are zero (so does the instruction treat subnormal activations), MXFP4 scales are held
//                       to 2^-125 .. 2^125. No released scale is anywhere near.
//   Floats              kLanes float32 values and FMA: F32 weights, and everything in avx2.
//
// A decoder may permute K within a block where that is cheaper; Pack() arranges the activations likewise.
#pragma once

namespace foresight::FORESIGHT_ISA {
namespace {

constexpr int kBlock = 128;

struct Floats {
  using Element = float;
  using Operand = Vec;
  static constexpr int kWidth = kLanes;
  static Operand Load(const Element* p) { return FORESIGHT_ISA::Load(p); }
  static Vec Dot(Vec sum, Operand w, Operand x) { return Fma(w, x, sum); }
};

// The order of K within a packed row of activations.
enum class Order : uint8_t { kFloats, kPlain, kFp8, kMxfp4 };

// The rows of a weight matrix at one block of K: what a decoder reads.
struct WeightBlock {
  const uint8_t* data;
  const uint8_t* scale;
};

struct F32Format {
  using Math = Floats;
  static constexpr Order kOrder = Order::kFloats;
  static constexpr int kGroup = kLanes;  // elements per Decode
  static constexpr int kVectors = 1;     // operand vectors per Decode
  static constexpr int kBlockBytes = 4 * kBlock;
  static constexpr int kBlockScales = 0;
  struct Scale {};
  static Scale LoadScale(const uint8_t*) { return {}; }
  static void Decode(const uint8_t* p, int group, const Scale&, Vec (&out)[1]) {
    out[0] = Load(reinterpret_cast<const float*>(p) + group * kLanes);
  }
};

#ifdef FORESIGHT_AVX512

struct Bf16Pairs {
  using Element = bf16;
  using Operand = __m512i;
  static constexpr int kWidth = 32;
  static Operand Load(const Element* p) { return _mm512_loadu_si512(p); }
  static Vec Dot(Vec sum, Operand w, Operand x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
};

struct Bf16Format {
  using Math = Bf16Pairs;
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kGroup = 32;
  static constexpr int kVectors = 1;
  static constexpr int kBlockBytes = 2 * kBlock;
  static constexpr int kBlockScales = 0;
  struct Scale {};
  static Scale LoadScale(const uint8_t*) { return {}; }
  static void Decode(const uint8_t* p, int group, const Scale&, __m512i (&out)[1]) {
    out[0] = _mm512_loadu_si512(p + 64 * group);
  }
};

// For every scale byte the bf16 patterns of the 128 non-negative e4m3 codes, upper bytes then lower bytes.
struct Fp8Tables {
  alignas(64) uint8_t bytes[256][2][128];
};

constexpr Fp8Tables MakeFp8Tables() {
  Fp8Tables tables{};
  for (int scale = 0; scale < 256; ++scale) {
    for (int code = 0; code < 128; ++code) {
      // code = mantissa * 2^exponent with mantissa in [8, 16), or 0; subnormals are normalised first.
      int mantissa = code < 8 ? code : 8 + code % 8;
      int exponent = code < 8 ? -9 : code / 8 - 10;
      while (mantissa > 0 && mantissa < 8) {
        mantissa *= 2;
        --exponent;
      }
      const int biased = exponent + 3 + scale;  // of the float: exponent + 3 + (scale - 127) + 127
      int bits = 0;
      if (scale == 255 || code == 127) {
        bits = 0x7fc0;  // NaN
      } else if (mantissa != 0 && biased >= 255) {
        bits = 0x7f80;  // infinity
      } else if (mantissa != 0 && biased > 0) {
        bits = biased << 7 | (mantissa - 8) << 4;
      }
      tables.bytes[scale][0][code] = static_cast<uint8_t>(bits >> 8);
      tables.bytes[scale][1][code] = static_cast<uint8_t>(bits);
    }
  }
  return tables;
}

constexpr Fp8Tables kFp8Tables = MakeFp8Tables();

// Two byte lookups per code and an interleave within 128-bit lanes, which leaves elements 0-7, 16-23, 32-39,
// 48-55 in the first operand and the others in the second.
struct Fp8Format {
  using Math = Bf16Pairs;
  static constexpr Order kOrder = Order::kFp8;
  static constexpr int kGroup = 64;
  static constexpr int kVectors = 2;
  static constexpr int kBlockBytes = kBlock;
  static constexpr int kBlockScales = 1;
  struct Scale {
    __m512i upper[2];
    __m512i lower[2];
  };
  static Scale LoadScale(const uint8_t* scale) {
    const auto& table = kFp8Tables.bytes[*scale];
    return {{_mm512_load_si512(table[0]), _mm512_load_si512(table[0] + 64)},
            {_mm512_load_si512(table[1]), _mm512_load_si512(table[1] + 64)}};
  }
  static void Decode(const uint8_t* p, int group, const Scale& scale, __m512i (&out)[2]) {
    const __m512i codes = _mm512_loadu_si512(p + 64 * group);
    const __m512i lower = _mm512_permutex2var_epi8(scale.lower[0], codes, scale.lower[1]);
    const __m512i magnitude = _mm512_permutex2var_epi8(scale.upper[0], codes, scale.upper[1]);
    // magnitude | (codes & 0x80)
    const __m512i upper =
        _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    out[0] = _mm512_unpacklo_epi8(lower, upper);
    out[1] = _mm512_unpackhi_epi8(lower, upper);
  }
};

// Codes times 2^125, with zero as -0, twice (the lookup takes five bits and the fifth is the next code's).
#define FORESIGHT_MXFP4_CODES                                                                          \
  0x8000, 251 << 7, 252 << 7, 252 << 7 | 64, 253 << 7, 253 << 7 | 64, 254 << 7, 254 << 7 | 64, 0x8000, \
      0x8000 | 251 << 7, 0x8000 | 252 << 7, 0x8000 | 252 << 7 | 64, 0x8000 | 253 << 7,                 \
      0x8000 | 253 << 7 | 64, 0x8000 | 254 << 7, 0x8000 | 254 << 7 | 64
alignas(64) constexpr uint16_t kMxfp4Table[32] = {FORESIGHT_MXFP4_CODES, FORESIGHT_MXFP4_CODES};
#undef FORESIGHT_MXFP4_CODES

// A 16-bit word holds elements 4i .. 4i+3; vpermw looks at the low five bits of each word only, so four
// lookups behind three shifts decode 128 elements: operand j holds the elements 4i+j. A saturating
// subtraction takes the exponent down, and leaves the zeros at -0.
struct Mxfp4Format {
  using Math = Bf16Pairs;
  static constexpr Order kOrder = Order::kMxfp4;
  static constexpr int kGroup = 128;
  static constexpr int kVectors = 4;
  static constexpr int kBlockBytes = kBlock / 2;
  static constexpr int kBlockScales = 4;
  struct Scale {
    __m512i down;  // per word: (252 - scale) << 7
  };
  static Scale LoadScale(const uint8_t* scale) { return Spread(Down(_mm_cvtsi32_si128(Bytes(scale))), 0); }
  // Of four rows, `stride` bytes apart: prepared together, in the 16 words of one vector.
  static void LoadScales(const uint8_t* scale, int64_t stride, Scale (&out)[4]) {
    const __m256i down = Down(_mm_setr_epi32(Bytes(scale), Bytes(scale + stride), Bytes(scale + 2 * stride),
                                             Bytes(scale + 3 * stride)));
    for (int row = 0; row < 4; ++row) out[row] = Spread(down, row);
  }
  static void Decode(const uint8_t* p, int, const Scale& scale, __m512i (&out)[4]) {
    const __m512i words = _mm512_loadu_si512(p);
    const __m512i table = _mm512_load_si512(kMxfp4Table);
    out[0] = _mm512_permutexvar_epi16(words, table);
    out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
    out[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table);
    out[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table);
    for (__m512i& v : out) v = _mm512_subs_epi16(v, scale.down);
  }

 private:
  static int Bytes(const uint8_t* scale) {
    int bytes;
    __builtin_memcpy(&bytes, scale, sizeof(bytes));
    return bytes;
  }
  // (252 - scale) << 7 for 16 scale bytes.
  static __m256i Down(__m128i s) {
    s = _mm_min_epu8(_mm_max_epu8(s, _mm_set1_epi8(2)), _mm_set1_epi8(static_cast<char>(252)));
    return _mm256_sub_epi16(_mm256_set1_epi16(252 << 7), _mm256_slli_epi16(_mm256_cvtepu8_epi16(s), 7));
  }
  // Words 4 * row .. 4 * row + 3, one for each 128-bit lane.
  static Scale Spread(__m256i down, int row) {
    auto lane = [row](uint64_t word) {
      const uint64_t words = (4 * row + word) * 0x0001000100010001u;
      return static_cast<long long>(words);
    };
    const __m512i index =
        _mm512_set_epi64(lane(3), lane(3), lane(2), lane(2), lane(1), lane(1), lane(0), lane(0));
    return {_mm512_permutexvar_epi16(index, _mm512_castsi256_si512(down))};
  }
};

#else

// 2^(byte-127) without a branch in the decoder; a scale of NaN (255) becomes infinity, a checkpoint that
// holds one is refused.
inline float ScaleToFloat(uint8_t byte) {
  return std::bit_cast<float>(byte == 0 ? 0x00400000u : static_cast<uint32_t>(byte) << 23);
}

struct Bf16Format {
  using Math = Floats;
  static constexpr Order kOrder = Order::kFloats;
  static constexpr int kGroup = 8;
  static constexpr int kVectors = 1;
  static constexpr int kBlockBytes = 2 * kBlock;
  static constexpr int kBlockScales = 0;
  struct Scale {};
  static Scale LoadScale(const uint8_t*) { return {}; }
  static void Decode(const uint8_t* p, int group, const Scale&, Vec (&out)[1]) {
    out[0] = LoadBf16(reinterpret_cast<const bf16*>(p) + 8 * group);
  }
};

struct Fp8Format {
  using Math = Floats;
  static constexpr Order kOrder = Order::kFloats;
  static constexpr int kGroup = 8;
  static constexpr int kVectors = 1;
  static constexpr int kBlockBytes = kBlock;
  static constexpr int kBlockScales = 1;
  struct Scale {
    Vec value;
  };
  static Scale LoadScale(const uint8_t* scale) { return {Set(ScaleToFloat(*scale))}; }
  static void Decode(const uint8_t* p, int group, const Scale& scale, Vec (&out)[1]) {
    out[0] = Mul(LoadE4M3(p + 8 * group), scale.value);
  }
};

// Codes become the integers 2 * value by a byte lookup; the scale takes the factor back.
struct Mxfp4Format {
  using Math = Floats;
  static constexpr Order kOrder = Order::kFloats;
  static constexpr int kGroup = 32;
  static constexpr int kVectors = 4;
  static constexpr int kBlockBytes = kBlock / 2;
  static constexpr int kBlockScales = 4;
  struct Scale {
    float half[4];
  };
  static Scale LoadScale(const uint8_t* scale) {
    return {{0.5f * ScaleToFloat(scale[0]), 0.5f * ScaleToFloat(scale[1]), 0.5f * ScaleToFloat(scale[2]),
             0.5f * ScaleToFloat(scale[3])}};
  }
  static void LoadScales(const uint8_t* scale, int64_t stride, Scale (&out)[4]) {
    for (int row = 0; row < 4; ++row) out[row] = LoadScale(scale + row * stride);
  }
  static void Decode(const uint8_t* p, int group, const Scale& scale, Vec (&out)[4]) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * group));
    const __m128i low_bits = _mm_set1_epi8(15);
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(bytes, low_bits));
    const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), low_bits));
    const __m128i first = _mm_unpacklo_epi8(even, odd);
    const __m128i second = _mm_unpackhi_epi8(even, odd);
    const Vec factor = Set(scale.half[group]);
    out[0] = Mul(ToFloats(first), factor);
    out[1] = Mul(ToFloats(_mm_srli_si128(first, 8)), factor);
    out[2] = Mul(ToFloats(second), factor);
    out[3] = Mul(ToFloats(_mm_srli_si128(second, 8)), factor);
  }

 private:
  static Vec ToFloats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
};

#endif

}  // namespace
}  // namespace foresight::FORESIGHT_ISA
