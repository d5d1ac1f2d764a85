// The products of attention and indexer: a few rows against a panel of cached keys.
//
// Both operands are rows of 32-bit units: a float32 value, or a pair of bfloat16 values. A panel holds kPanel
// columns of units, [steps][kPanel]; the product's element (row, column) is the sum over steps in their
// order, in one lane of its own, so it depends on nothing but its own row and column (row purity).
//
// To be included within cpu/isa_begin.h, after cpu/simd.h and norm_rope/rotate_cpu.h.
#pragma once

namespace foresight::FORESIGHT_ISA {
namespace {

constexpr int kPanel = 2 * kLanes;
// Rows of a product's tile: as many as leave registers for the panel's two vectors.
#ifdef FORESIGHT_AVX512
constexpr int kTile = 12;
#else
constexpr int kTile = 6;
#endif

inline I32 LoadUnitVector(const void* p) {
  I32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// Float32 units, for either layout.
struct FloatUnits {
  static constexpr int kValues = 1;  // per unit

  static Vec MultiplyAdd(const uint32_t* a, Vec b, Vec sum) {
    return Fma(FromBits(SetInt(static_cast<int>(*a))), b, sum);
  }

  // Values [i, i + kLanes) of an entry; zeros behind the last.
  static I32 LoadEntry(const EntryLayout& layout, const std::byte* entry, int i) {
    if (layout.format == CacheFormat::kFloat32) {
      return LoadUnits(reinterpret_cast<const float*>(entry), i, layout.dim);
    }
    const int nope = layout.nope();
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(entry);
    if (i >= nope) {
      if (i + kLanes <= layout.dim)
        return (I32)LoadBf16(reinterpret_cast<const bf16*>(codes + nope) + (i - nope));
      uint16_t tail[kLanes] = {};
      if (i < layout.dim)
        std::memcpy(tail, codes + nope + 2 * (i - nope), 2 * static_cast<size_t>(layout.dim - i));
      return (I32)LoadBf16(tail);
    }
    U8 code;
    std::memcpy(&code, codes + i, kLanes);
    const I32 wide = __builtin_convertvector(code, I32);
    const I32 low = wide & 0x7f;
    const I32 scale = SplatI32(codes[nope + 2 * layout.rope_dim + i / 64] << 23);
    // The code's exponent and mantissa as a float32, subnormals included, times 2^120.
    const Vec magnitude = (Vec)(low << 20) * 0x1p120f * (Vec)scale;
    const I32 bits = low == 0x7f ? SplatI32(0x7fc00000) : (I32)magnitude;
    return bits | ((wide & 0x80) << 24);
  }

  static I32 LoadIndexKey(const IndexKeyLayout& layout, const std::byte* key, int i) {
    if (layout.format == CacheFormat::kFloat32) {
      return LoadUnits(reinterpret_cast<const float*>(key), i, layout.dim);
    }
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(key);
    const float scale = E8M0(codes[layout.dim / 2 + i / 32]);
    using U8Half = uint8_t __attribute__((vector_size(kLanes / 2)));
    U8Half bytes;
    std::memcpy(&bytes, codes + i / 2, kLanes / 2);
    float value[kLanes];
    constexpr float kGrid[16] = {0.f,  .5f,  1.f,  1.5f,  2.f,  3.f,  4.f,  6.f,
                                 -0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};
    for (int k = 0; k < kLanes; ++k) value[k] = kGrid[(bytes[k / 2] >> (4 * (k % 2))) & 15];
    return (I32)(Load(value) * scale);
  }

  static I32 LoadUnits(const float* x, int i, int dim) {
    if (i + kLanes <= dim) return LoadUnitVector(x + i);
    float tail[kLanes] = {};
    if (i < dim) std::memcpy(tail, x + i, 4 * static_cast<size_t>(dim - i));
    return LoadUnitVector(tail);
  }

  static float E8M0(uint8_t byte) {
    const uint32_t bits = static_cast<uint32_t>(byte) << 23;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }

  // x [count] as units; may share memory with x.
  static void Pack(const float* x, int64_t count, uint32_t* units) {
    std::memmove(units, x, 4 * static_cast<size_t>(count));
  }
};

#ifdef FORESIGHT_AVX512
// Pairs of bfloat16. Exact for packed caches: E4M3 and E2M1 values with a scale of a power of two have few
// enough bits.
struct Bf16Units {
  static constexpr int kValues = 2;

  static Vec MultiplyAdd(const uint32_t* a, Vec b, Vec sum) {
    return (Vec)_mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(*a)), (__m512bh)b);
  }

  // Values [2i, 2i + 32) of a packed entry, 16 units; zeros behind the last.
  static I32 LoadEntry(const EntryLayout& layout, const std::byte* entry, int i) {
    const int nope = layout.nope();
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(entry);
    const int c = 2 * i;
    if (c >= nope) {
      const int left = layout.dim - c;
      const __mmask32 mask = left >= 32 ? ~__mmask32{0}
                             : left > 0 ? (__mmask32{1} << left) - 1
                                        : __mmask32{0};
      return (I32)_mm512_maskz_loadu_epi16(mask, codes + nope + 2 * (c - nope));
    }
    // The code's exponent (bias 7) and mantissa moved to their place and the bias to 127 + the scale's
    // exponent.
    const int scale = codes[nope + 2 * layout.rope_dim + c / 64];
    const __m512i wide =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + c)));
    const __m512i low = _mm512_and_si512(wide, _mm512_set1_epi16(0x7f));
    const __m512i normal =
        _mm512_add_epi16(_mm512_slli_epi16(low, 4), _mm512_set1_epi16(static_cast<short>((scale - 7) << 7)));
    // Codes 0..7 are multiples of 2^-9: looked up (3f80 is 1.0).
    alignas(64) static constexpr short kSubnormal[32] = {
        0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0,      0,      0,      0,      0,      0,      0,      0, 0, 0, 0, 0, 0, 0, 0};
    const __m512i scaled = _mm512_mask_add_epi16(_mm512_setzero_si512(), 0xfe, _mm512_load_si512(kSubnormal),
                                                 _mm512_set1_epi16(static_cast<short>((scale - 127) << 7)));
    const __mmask32 is_subnormal = _mm512_testn_epi16_mask(wide, _mm512_set1_epi16(0x78));
    __m512i value = _mm512_mask_permutexvar_epi16(normal, is_subnormal, low, scaled);
    value = _mm512_mask_mov_epi16(value, _mm512_cmpeq_epi16_mask(low, _mm512_set1_epi16(0x7f)),
                                  _mm512_set1_epi16(0x7fc0));
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(wide, _mm512_set1_epi16(0x80)), 8);
    return (I32)_mm512_or_si512(value, sign);
  }

  // Values [2i, 2i + 32) of a packed index key.
  static I32 LoadIndexKey(const IndexKeyLayout& layout, const std::byte* key, int i) {
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(key);
    alignas(64) static constexpr short kGrid[32] = {0,       0x3f00,  0x3f80,  0x3fc0,  0x4000,  0x4040,
                                                    0x4080,  0x40c0,  -0x8000, -0x4100, -0x4080, -0x4040,
                                                    -0x4000, -0x3fc0, -0x3f80, -0x3f40};
    const int scale = codes[layout.dim / 2 + i / 16];
    const __m512i grid = _mm512_mask_add_epi16(_mm512_load_si512(kGrid), 0xfefe, _mm512_load_si512(kGrid),
                                               _mm512_set1_epi16(static_cast<short>((scale - 127) << 7)));
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
    const __m512i pairs = _mm512_or_si512(_mm512_and_si512(bytes, _mm512_set1_epi32(15)),
                                          _mm512_slli_epi32(_mm512_srli_epi32(bytes, 4), 16));
    return (I32)_mm512_permutexvar_epi16(pairs, grid);
  }

  // to[2d] = (even's value d, odd's value d) as units in the order of d.
  static void Interleave(I32 even, I32 odd, uint32_t* to) {
    alignas(64) static constexpr short kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                   37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                   11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(kLow);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16((__m512i)even, low, (__m512i)odd));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16((__m512i)even, high, (__m512i)odd));
  }

  // x [count] as units; may share memory with x.
  static void Pack(const float* x, int64_t count, uint32_t* units) {
    for (int64_t i = 0; i < count; i += 32) {
      const int64_t left = count - i;
      const __mmask16 low = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      const __mmask16 high = left >= 32  ? 0xffff
                             : left > 16 ? static_cast<__mmask16>((1u << (left - 16)) - 1)
                                         : 0;
      const __m512bh pair =
          _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, x + i + 16), _mm512_maskz_loadu_ps(low, x + i));
      const __mmask32 mask = static_cast<__mmask32>(low) | static_cast<__mmask32>(high) << 16;
      _mm512_mask_storeu_epi16(units + i / 2, mask, (__m512i)pair);
    }
  }
};
#endif

// row[i] -> units i of the rows, kLanes by kLanes, in place.
inline void Transpose(I32 row[kLanes]) {
  // Rounds of interleaving rows that lie half the table apart.
#ifdef FORESIGHT_AVX512
  I32 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = (I32)_mm512_unpacklo_epi32((__m512i)row[i], (__m512i)row[i + 1]);
    t[i + 1] = (I32)_mm512_unpackhi_epi32((__m512i)row[i], (__m512i)row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int k = 0; k < 2; ++k) {
      row[i + 2 * k] = (I32)_mm512_unpacklo_epi64((__m512i)t[i + k], (__m512i)t[i + k + 2]);
      row[i + 2 * k + 1] = (I32)_mm512_unpackhi_epi64((__m512i)t[i + k], (__m512i)t[i + k + 2]);
    }
  }
  // row[4g + j], 128-bit part q: column 4q + j of rows 4g .. 4g + 3.
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4((__m512i)row[j], (__m512i)row[4 + j], 0x88);
    const __m512i b = _mm512_shuffle_i32x4((__m512i)row[j], (__m512i)row[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4((__m512i)row[8 + j], (__m512i)row[12 + j], 0x88);
    const __m512i d = _mm512_shuffle_i32x4((__m512i)row[8 + j], (__m512i)row[12 + j], 0xdd);
    t[j] = (I32)_mm512_shuffle_i32x4(a, c, 0x88);
    t[8 + j] = (I32)_mm512_shuffle_i32x4(a, c, 0xdd);
    t[4 + j] = (I32)_mm512_shuffle_i32x4(b, d, 0x88);
    t[12 + j] = (I32)_mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) row[i] = t[i];
#else
  I32 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = (I32)_mm256_unpacklo_epi32((__m256i)row[i], (__m256i)row[i + 1]);
    t[i + 1] = (I32)_mm256_unpackhi_epi32((__m256i)row[i], (__m256i)row[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      row[i + 2 * k] = (I32)_mm256_unpacklo_epi64((__m256i)t[i + k], (__m256i)t[i + k + 2]);
      row[i + 2 * k + 1] = (I32)_mm256_unpackhi_epi64((__m256i)t[i + k], (__m256i)t[i + k + 2]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    t[j] = (I32)_mm256_permute2x128_si256((__m256i)row[j], (__m256i)row[4 + j], 0x20);
    t[4 + j] = (I32)_mm256_permute2x128_si256((__m256i)row[j], (__m256i)row[4 + j], 0x31);
  }
  for (int i = 0; i < 8; ++i) row[i] = t[i];
#endif
}

// The panel whose columns are keys: panel[u][j] = unit u of key j; zeros where j >= count. load(j, u) gives
// units [u, u + kLanes) of key j. `panel` has room for `units` rounded up to kLanes.
template <typename LoadKey>
void PackColumns(int count, int units, const LoadKey& load, uint32_t* panel) {
  for (int group = 0; group < 2; ++group) {
    for (int u = 0; u < units; u += kLanes) {
      I32 row[kLanes];
      for (int j = 0; j < kLanes; ++j)
        row[j] = group * kLanes + j < count ? load(group * kLanes + j, u) : I32{};
      Transpose(row);
      for (int k = 0; k < kLanes; ++k) {
        std::memcpy(panel + static_cast<int64_t>(u + k) * kPanel + group * kLanes, &row[k], sizeof(I32));
      }
    }
  }
}

// sums[r] = row r of a (units, `stride` apart) times the panel.
template <typename Units, int kRows>
inline void ProductTile(const uint32_t* a, int64_t stride, const uint32_t* panel, int64_t steps,
                        Vec sums[][2]) {
  Vec acc[kRows][2] = {};
  for (int64_t k = 0; k < steps; ++k) {
    const Vec b0 = (Vec)LoadUnitVector(panel + k * kPanel);
    const Vec b1 = (Vec)LoadUnitVector(panel + k * kPanel + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      acc[r][0] = Units::MultiplyAdd(a + r * stride + k, b0, acc[r][0]);
      acc[r][1] = Units::MultiplyAdd(a + r * stride + k, b1, acc[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] = acc[r][0];
    sums[r][1] = acc[r][1];
  }
}

template <typename Units, int kRows = kTile>
inline void ProductRows(int rows, const uint32_t* a, int64_t stride, const uint32_t* panel, int64_t steps,
                        Vec sums[][2]) {
  if (rows == kRows) {
    ProductTile<Units, kRows>(a, stride, panel, steps, sums);
  } else if constexpr (kRows > 1) {
    ProductRows<Units, kRows - 1>(rows, a, stride, panel, steps, sums);
  }
}

// finish(r, sums) for every row r of a in [0, rows): sums[2] is the row times the panel.
template <typename Units, typename Finish>
void Product(int rows, const uint32_t* a, int64_t stride, const uint32_t* panel, int64_t steps,
             const Finish& finish) {
  for (int begin = 0; begin < rows; begin += kTile) {
    const int count = rows - begin < kTile ? rows - begin : kTile;
    Vec sums[kTile][2];
    ProductRows<Units>(count, a + begin * stride, stride, panel, steps, sums);
    for (int r = 0; r < count; ++r) finish(begin + r, sums[r]);
  }
}

}  // namespace
}  // namespace foresight::FORESIGHT_ISA
