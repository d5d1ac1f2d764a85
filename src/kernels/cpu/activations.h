// Rows of activations, made into operands once per call.
#pragma once

#include "kernels/cpu/weight_formats.h"

namespace foresight::FORESIGHT_ISA {

// Packed rows: row r at data + r * stride (bytes). Its terms follow each other, PaddedBytes() each: K padded
// with zeros to a multiple of kBlock.
struct PackedRows {
  const std::byte* data = nullptr;
  int64_t stride = 0;
  int terms = 1;
};

namespace {

// How a row becomes operands.
struct Form {
  Order order = Order::kFloats;
  bool quantize = false;  // through act_quant with blocks of 128 first
  // A value is the sum of this many bf16 values: one where it is a bf16 value already; else two,
  // x = bf16(x) + bf16(x - bf16(x)), which lose 2^-17 of it at most. Floats need one.
  int terms = 1;

  friend bool operator==(const Form&, const Form&) = default;
};

inline int TermsOf(Order order, bool bf16_values) {
  return order == Order::kFloats || bf16_values ? 1 : 2;
}

inline int64_t PaddedBytes(Order order, int64_t k) {
  return (k + kBlock - 1) / kBlock * kBlock * (order == Order::kFloats ? 4 : 2);
}

// Bytes from one packed row to the next. Six rows at a stride of a multiple of 4096 would compete for the
// same few sets of the first-level cache; a sixth of that apart, they share it evenly.
inline int64_t PackedStride(const Form& form, int64_t k) {
  const int64_t bytes = form.terms * PaddedBytes(form.order, k);
  constexpr int64_t kWay = 4096;
  constexpr int64_t kApart = 704;
  return bytes <= kWay / 2 ? bytes : bytes + (kApart - bytes % kWay + kWay) % kWay % kWay;
}

constexpr int kBlockVecs = kBlock / kLanes;

// act_quant of one block (model spec 2.1): to e4m3 with a power-of-two scale and back.
inline void ActQuant(Vec (&v)[kBlockVecs]) {
  Vec amax = Zero();
  for (const Vec& x : v) amax = Max(Abs(x), amax);  // NaN is passed over, as in the definition
  const int scale = ActQuantScale(MaxLane(amax));
  // Both factors are normal powers of two: scale is 105 .. 247.
  const Vec up = Set(std::bit_cast<float>(static_cast<uint32_t>(scale) << 23));
  const Vec down = Set(std::bit_cast<float>(static_cast<uint32_t>(254 - scale) << 23));
  for (Vec& x : v) x = Mul(RoundToE4M3(Mul(x, down)), up);
}

#ifdef FORESIGHT_AVX512

// Rounds a block to bf16 and stores it in the order that a format's decoder leaves the weights in.
inline void StoreBlock(Order order, const Vec (&v)[kBlockVecs], std::byte* out) {
  if (order == Order::kFloats) {
    for (int i = 0; i < kBlockVecs; ++i) Store(reinterpret_cast<float*>(out) + i * kLanes, v[i]);
    return;
  }
  __m512i z[4];  // 32 bf16 each, in plain order
  for (int i = 0; i < 4; ++i) z[i] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v[2 * i + 1], v[2 * i]));
  __m512i arranged[4];
  if (order == Order::kPlain) {
    for (int i = 0; i < 4; ++i) arranged[i] = z[i];
  } else if (order == Order::kFp8) {
    for (int i = 0; i < 4; i += 2) {
      arranged[i] = _mm512_shuffle_i64x2(z[i], z[i + 1], 0x88);      // 128-bit lanes 0, 2 of both
      arranged[i + 1] = _mm512_shuffle_i64x2(z[i], z[i + 1], 0xdd);  // lanes 1, 3
    }
  } else {
    alignas(64) static constexpr uint16_t kEveryFourth[32] = {0,  4,  8,  12, 16, 20, 24, 28, 32, 36, 40,
                                                              44, 48, 52, 56, 60, 0,  4,  8,  12, 16, 20,
                                                              24, 28, 32, 36, 40, 44, 48, 52, 56, 60};
    for (int j = 0; j < 4; ++j) {
      const __m512i index =
          _mm512_add_epi16(_mm512_load_si512(kEveryFourth), _mm512_set1_epi16(static_cast<short>(j)));
      arranged[j] = _mm512_mask_blend_epi16(0xffff0000u, _mm512_permutex2var_epi16(z[0], index, z[1]),
                                            _mm512_permutex2var_epi16(z[2], index, z[3]));
    }
  }
  for (int i = 0; i < 4; ++i) _mm512_storeu_si512(out + 64 * i, arranged[i]);
}

#else

inline void StoreBlock(Order, const Vec (&v)[kBlockVecs], std::byte* out) {
  for (int i = 0; i < kBlockVecs; ++i) Store(reinterpret_cast<float*>(out) + i * kLanes, v[i]);
}

#endif

// One row x [k], or whole blocks of one, into packed form; `term_bytes` of the row lie between two terms.
inline void PackRow(const float* x, int64_t k, const Form& form, int64_t term_bytes, std::byte* out) {
  const int64_t block_bytes = PaddedBytes(form.order, kBlock);
  for (int64_t begin = 0; begin < k; begin += kBlock, out += block_bytes) {
    Vec v[kBlockVecs];
    for (int i = 0; i < kBlockVecs; ++i) {
      const int64_t left = k - begin - i * kLanes;
      const float* p = x + begin + i * kLanes;
      v[i] = left >= kLanes ? Load(p) : left > 0 ? LoadPart(p, static_cast<int>(left)) : Zero();
    }
    if (form.quantize) ActQuant(v);
    StoreBlock(form.order, v, out);
    if (form.terms == 1) continue;
    for (Vec& rest : v) rest = Sub(rest, RoundToBf16(rest));
    StoreBlock(form.order, v, out + term_bytes);
  }
}

}  // namespace
}  // namespace foresight::FORESIGHT_ISA
