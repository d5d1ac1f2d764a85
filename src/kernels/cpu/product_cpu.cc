// How often a decoded weight is used:
//
//   few rows   weights are decoded in registers and meet up to kFewRows rows there (memory-bound); four
//   outputs
//              side by side for up to kQuadRows rows, two for more, so that the sums stay in registers
//   many rows  a panel of outputs is decoded once into scratch that stays in the second-level cache; a micro
//              kernel of 4 outputs x kMicroRows rows runs over it in chunks of K that fit the first level,
//              its sums waiting in scratch between chunks (compute-bound)
#include "base/check.h"
#include "tensor/tensor.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/product.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

constexpr int kQuadRows = 4;
constexpr int64_t kChunkBytes = 2048;  // of one operand row

// RoundBf16 of four values.
inline __m128 RoundFourToBf16(__m128 v) {
  const __m128i bits = _mm_castps_si128(v);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), odd);
  const __m128i quiet = _mm_or_si128(bits, _mm_set1_epi32(0x400000));
  const __m128i chosen = _mm_blendv_epi8(rounded, quiet, _mm_castps_si128(_mm_cmpunord_ps(v, v)));
  return _mm_castsi128_ps(_mm_and_si128(chosen, _mm_set1_epi32(static_cast<int>(0xffff0000))));
}

// Stores the first `count` of four outputs.
inline void StoreOutputs(__m128 y, int count, bool round_to_bf16, float* out) {
  if (round_to_bf16) y = RoundFourToBf16(y);
  if (count == kOutputs) {
    _mm_storeu_ps(out, y);
  } else {
    alignas(16) float value[4];
    _mm_store_ps(value, y);
    for (int i = 0; i < count; ++i) out[i] = value[i];
  }
}

// Where weight rows n, n+1, ... lie. FP8 rows that are used together lie in one scale block.
template <typename Format>
struct WeightRows {
  const uint8_t* data;
  const uint8_t* scale;
  int64_t row_bytes;
  int64_t scale_stride;

  WeightRows(const MatrixView& w, int64_t n)
      : data(w.u8() + n * w.row_bytes()), scale(w.scales), row_bytes(w.row_bytes()), scale_stride(0) {
    if (Format::kBlockScales == 1) scale += n / 128 * w.scale_cols();
    if (Format::kBlockScales == 4) {
      scale_stride = w.scale_cols();
      scale += n * scale_stride;
    }
  }
  // Block b of row n + o.
  WeightBlock Block(int64_t b, int o = 0) const {
    return {data + o * row_bytes + b * Format::kBlockBytes,
            scale + o * scale_stride + b * Format::kBlockScales};
  }
};

// The last, partial block of a row, padded.
template <typename Format>
struct PaddedBlock {
  alignas(64) uint8_t data[Format::kBlockBytes];
  uint8_t scale[4];

  // `left` elements of the block at `from`; the rest is zeros.
  void Fill(WeightBlock from, int64_t left) {
    const int64_t bytes = left * Format::kBlockBytes / kBlock;
    __builtin_memset(data, 0, sizeof(data));
    __builtin_memcpy(data, from.data, bytes);
    if (Format::kBlockScales == 0) return;
    const int64_t count = Format::kBlockScales == 1 ? 1 : (left + 31) / 32;
    __builtin_memset(scale, 127, sizeof(scale));
    __builtin_memcpy(scale, from.scale, count);
  }
  WeightBlock View() const { return {data, scale}; }
};

// One block of K of one weight row with this scale, for `rows` activation rows at x[r] + at.
template <typename Format, int outputs, int rows>
inline __attribute__((always_inline)) void AddBlock(const uint8_t* w, const typename Format::Scale& scale,
                                                    const std::byte* const (&x)[rows], int64_t at, int o,
                                                    Vec (&sum)[rows][outputs]) {
  using Math = typename Format::Math;
  using Element = typename Math::Element;
#pragma GCC unroll 16
  for (int g = 0; g < kBlock / Format::kGroup; ++g) {
    typename Math::Operand decoded[Format::kVectors];
    Format::Decode(w, g, scale, decoded);
#pragma GCC unroll 8
    for (int v = 0; v < Format::kVectors; ++v) {
      const int64_t i = at + g * Format::kGroup + v * Math::kWidth;
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        sum[r][o] = Math::Dot(sum[r][o], decoded[v], Math::Load(reinterpret_cast<const Element*>(x[r]) + i));
      }
    }
  }
}

// Rows that are used together are fetched ahead into the first-level cache when they are at most this long in
// all, else into the second: more would push out what is in use (measured: docs/performance.md).
constexpr int64_t kFirstLevelBytes = 8192;

// Outputs n .. n+outputs-1 of rows 0 .. rows-1, weights decoded in registers.
template <typename Format, int outputs, int rows>
void FewRows(const Product& p, int64_t n) {
  const WeightRows<Format> w(*p.w, n);
  const std::byte* x[rows];
  for (int r = 0; r < rows; ++r) x[r] = p.Row(r);
  Vec sum[rows][outputs];
  for (auto& row : sum) {
    for (Vec& s : row) s = Zero();
  }
  const int64_t k = p.w->cols;
  const int64_t blocks = k / kBlock;
  const int64_t row_bytes = w.row_bytes;
  // The next outputs' rows follow these in memory. Asking for them in the order of their addresses keeps the
  // hardware's prefetcher running, which the walk over several rows at once does not.
  const bool last = n + outputs >= p.end && p.next != nullptr;
  const bool to_first_level = outputs * row_bytes <= kFirstLevelBytes;
  int64_t at = 0;  // in the rows of x, whose terms follow each other
  for (int term = 0; term < p.x.terms; ++term) {
    const uint8_t* data = w.data;
    const uint8_t* scale = w.scale;
    const uint8_t* ahead = last ? reinterpret_cast<const uint8_t*>(p.next) : data + outputs * row_bytes;
    for (int64_t b = 0; b < blocks;
         ++b, at += kBlock, data += Format::kBlockBytes, scale += Format::kBlockScales) {
      typename Format::Scale s[outputs];
      if constexpr (Format::kBlockScales == 4 && outputs == 4) {
        Format::LoadScales(scale, w.scale_stride, s);
      } else {
        // NOLINTNEXTLINE(bugprone-branch-clone): `outputs` may be 1
        for (int o = 0; o < (Format::kBlockScales == 4 ? outputs : 1); ++o) {
          s[o] = Format::LoadScale(scale + o * w.scale_stride);
        }
      }
#pragma GCC unroll 4
      for (int o = 0; o < outputs; ++o) {
        const uint8_t* row = data + o * row_bytes;
#pragma GCC unroll 8
        for (int i = 0; i < Format::kBlockBytes; i += 64, ahead += 64) {
          if (to_first_level) {
            __builtin_prefetch(ahead, 0, 3);
          } else {
            __builtin_prefetch(ahead, 0, 2);
          }
        }
        AddBlock<Format, outputs, rows>(row, s[Format::kBlockScales == 4 ? o : 0], x, at, o, sum);
      }
    }
    if (k % kBlock != 0) {
      for (int o = 0; o < outputs; ++o) {
        PaddedBlock<Format> padded;
        padded.Fill(w.Block(blocks, o), k % kBlock);
        AddBlock<Format, outputs, rows>(padded.data, Format::LoadScale(padded.scale), x, at, o, sum);
      }
      at += kBlock;
    }
  }
  for (int r = 0; r < rows; ++r) {
    float* out = p.out + r * p.out_stride + n - p.begin;
    if constexpr (outputs == 4) {
      StoreOutputs(SumFour(sum[r][0], sum[r][1], sum[r][2], sum[r][3]), 4, p.round_to_bf16, out);
    } else {
      for (int o = 0; o < outputs; ++o) StoreOutputs(_mm_set_ss(Sum(sum[r][o])), 1, p.round_to_bf16, out + o);
    }
  }
}

template <typename Format, int rows>
void FewRowsAll(const Product& p) {
  constexpr int kTogether = rows <= kQuadRows ? kOutputs : kOutputs / 2;
  for (int64_t n = p.begin; n < p.end;) {
    if (n % kTogether == 0 && n + kTogether <= p.end) {
      FewRows<Format, kTogether, rows>(p, n);
      n += kTogether;
    } else {
      FewRows<Format, 1, rows>(p, n);
      ++n;
    }
  }
}

// Decodes weight row n into panel row `o` of its group of four: vector i of the row is at dst + 4 * i.
template <typename Format>
void DecodeRow(const MatrixView& w, int64_t n, typename Format::Math::Operand* dst) {
  const WeightRows<Format> row(w, n);
  auto decode = [&dst](WeightBlock block) {
    const auto scale = Format::LoadScale(block.scale);
    for (int g = 0; g < kBlock / Format::kGroup; ++g) {
      typename Format::Math::Operand decoded[Format::kVectors];
      Format::Decode(block.data, g, scale, decoded);
#pragma GCC unroll 4
      for (int v = 0; v < Format::kVectors; ++v, dst += kOutputs) *dst = decoded[v];
    }
  };
  for (int64_t b = 0; b < w.cols / kBlock; ++b) decode(row.Block(b));
  if (w.cols % kBlock != 0) {
    PaddedBlock<Format> padded;
    padded.Fill(row.Block(w.cols / kBlock), w.cols % kBlock);
    decode(padded.View());
  }
}

// `steps` operand vectors of four outputs and `rows` rows; sums start from zero when `start`, else from
// `sums`.
template <typename Math, int rows>
void Micro(const typename Math::Operand* panel, const std::byte* const (&x)[kMicroRows], int64_t offset,
           int steps, bool start, Vec* sums) {
  using Element = typename Math::Element;
  const Element* row[rows];
  for (int r = 0; r < rows; ++r) row[r] = reinterpret_cast<const Element*>(x[r] + offset);
  Vec sum[rows][kOutputs];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) sum[r][o] = start ? Zero() : sums[r * kOutputs + o];
  }
  for (int i = 0; i < steps; ++i, panel += kOutputs) {
    typename Math::Operand w[kOutputs];
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) w[o] = panel[o];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const typename Math::Operand v = Math::Load(row[r] + i * Math::kWidth);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) sum[r][o] = Math::Dot(sum[r][o], w[o], v);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) sums[r * kOutputs + o] = sum[r][o];
  }
}

// All outputs of the panel [n, n + count) for `rows` rows from `first` on.
template <typename Math, int rows>
void MicroRows(const Product& p, const typename Math::Operand* panel, int64_t n, int count, int first,
               Vec* sums) {
  const std::byte* x[kMicroRows] = {};
  for (int r = 0; r < rows; ++r) x[r] = p.Row(first + r);
  constexpr int kVectorBytes = sizeof(Vec);
  const int64_t row_bytes = (p.w->cols + kBlock - 1) / kBlock * kBlock * sizeof(typename Math::Element);
  const int64_t quad_vectors = row_bytes / kVectorBytes * kOutputs;
  const int quads = (count + kOutputs - 1) / kOutputs;
  for (int term = 0; term < p.x.terms; ++term) {
    for (int64_t offset = 0; offset < row_bytes; offset += kChunkBytes) {
      const int64_t bytes = row_bytes - offset < kChunkBytes ? row_bytes - offset : kChunkBytes;
      for (int q = 0; q < quads; ++q) {
        Micro<Math, rows>(panel + q * quad_vectors + offset / kVectorBytes * kOutputs, x,
                          term * row_bytes + offset, static_cast<int>(bytes / kVectorBytes),
                          term == 0 && offset == 0, sums + q * kMicroRows * kOutputs);
      }
    }
  }
  for (int q = 0; q < quads; ++q) {
    const int left = count - q * kOutputs;
    for (int r = 0; r < rows; ++r) {
      const Vec* s = sums + (q * kMicroRows + r) * kOutputs;
      StoreOutputs(SumFour(s[0], s[1], s[2], s[3]), left < kOutputs ? left : kOutputs, p.round_to_bf16,
                   p.out + (first + r) * p.out_stride + n - p.begin + q * kOutputs);
    }
  }
}

template <typename Format>
void ManyRows(const Product& p) {
  using Math = typename Format::Math;
  using Operand = typename Math::Operand;
  Vec* sums = reinterpret_cast<Vec*>(p.scratch);
  Operand* panel = reinterpret_cast<Operand*>(p.scratch + int64_t{kPanelOutputs} * kMicroRows * sizeof(Vec));
  const int64_t row_vectors = PaddedBytes(Format::kOrder, p.w->cols) / static_cast<int64_t>(sizeof(Vec));
  const int outputs = PanelOutputs(*p.w);
  for (int64_t n = p.begin; n < p.end; n += outputs) {
    const int count = static_cast<int>(p.end - n < outputs ? p.end - n : outputs);
    for (int o = 0; o < count; ++o) {
      DecodeRow<Format>(*p.w, n + o, panel + o / kOutputs * kOutputs * row_vectors + o % kOutputs);
    }
    // What stands beside the last output is never stored; it must not be what another call left there.
    for (int o = count; o % kOutputs != 0; ++o) {
      Operand* dst = panel + o / kOutputs * kOutputs * row_vectors + o % kOutputs;
      for (int64_t i = 0; i < row_vectors; ++i) dst[i * kOutputs] = Operand{};
    }
    int r = 0;
    for (; r + kMicroRows <= p.rows; r += kMicroRows)
      MicroRows<Math, kMicroRows>(p, panel, n, count, r, sums);
    switch (p.rows - r) {
      case 1:
        MicroRows<Math, 1>(p, panel, n, count, r, sums);
        break;
      case 2:
        MicroRows<Math, 2>(p, panel, n, count, r, sums);
        break;
#ifdef FORESIGHT_AVX512
      case 3:
        MicroRows<Math, 3>(p, panel, n, count, r, sums);
        break;
      case 4:
        MicroRows<Math, 4>(p, panel, n, count, r, sums);
        break;
      case 5:
        MicroRows<Math, 5>(p, panel, n, count, r, sums);
        break;
#endif
      default:
        break;
    }
  }
}

template <typename Format>
void MultiplyFormat(const Product& p) {
  switch (p.rows) {
    case 0:
      return;
    case 1:
      return FewRowsAll<Format, 1>(p);
    case 2:
      return FewRowsAll<Format, 2>(p);
    case 3:
      return FewRowsAll<Format, 3>(p);
    case 4:
      return FewRowsAll<Format, 4>(p);
    case 5:
      return FewRowsAll<Format, 5>(p);
    case 6:
      return FewRowsAll<Format, 6>(p);
    case 7:
      return FewRowsAll<Format, 7>(p);
    case 8:
      return FewRowsAll<Format, 8>(p);
    default:
      return ManyRows<Format>(p);
  }
}

}  // namespace

void Multiply(const Product& p) {
  switch (p.w->dtype) {
    case DType::kF8E4M3:
      return MultiplyFormat<Fp8Format>(p);
    case DType::kI8:
      return MultiplyFormat<Mxfp4Format>(p);
    case DType::kBF16:
      return MultiplyFormat<Bf16Format>(p);
    case DType::kF32:
      return MultiplyFormat<F32Format>(p);
    default:
      CHECK(false, "weights can't be {}", DTypeName(p.w->dtype));
  }
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
