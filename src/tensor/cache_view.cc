#include "tensor/cache_view.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "tensor/formats.h"

namespace foresight {
namespace {

constexpr int kMaxDim = 1024;  // of an entry or a key; the configuration's validation holds head_dim to it

}  // namespace

void EncodeEntry(const EntryLayout& layout, const float* x, std::byte* out) {
  if (layout.format == CacheFormat::kFloat32) {
    std::memcpy(out, x, layout.bytes());
    return;
  }
  const int nope = layout.nope();
  uint8_t* codes = reinterpret_cast<uint8_t*>(out);
  uint8_t* scales = codes + nope + 2 * layout.rope_dim;
  std::memset(scales, 0, layout.bytes() - nope - 2 * layout.rope_dim);
  for (int k = 0; k < nope / 64; ++k) {
    float amax = 0;
    for (int i = 64 * k; i < 64 * (k + 1); ++i) amax = std::max(amax, std::fabs(RoundBf16(x[i])));
    scales[k] = ActQuantScale(amax);
    const float scale = E8M0ToFloat(scales[k]);
    for (int i = 64 * k; i < 64 * (k + 1); ++i) codes[i] = FloatToE4M3(RoundBf16(x[i]) / scale);
  }
  for (int i = 0; i < layout.rope_dim; ++i) {
    const bf16 r = FloatToBf16(x[nope + i]);
    std::memcpy(codes + nope + 2 * i, &r, 2);
  }
}

void DecodeEntry(const EntryLayout& layout, const std::byte* in, float* x) {
  if (layout.format == CacheFormat::kFloat32) {
    std::memcpy(x, in, layout.bytes());
    return;
  }
  const int nope = layout.nope();
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(in);
  const uint8_t* scales = codes + nope + 2 * layout.rope_dim;
  for (int i = 0; i < nope; ++i) x[i] = E4M3ToFloat(codes[i]) * E8M0ToFloat(scales[i / 64]);
  for (int i = 0; i < layout.rope_dim; ++i) {
    bf16 r;
    std::memcpy(&r, codes + nope + 2 * i, 2);
    x[nope + i] = Bf16ToFloat(r);
  }
}

void EncodeIndexKey(const IndexKeyLayout& layout, const float* x, std::byte* out) {
  if (layout.format == CacheFormat::kFloat32) {
    std::memcpy(out, x, layout.bytes());
    return;
  }
  CHECK(layout.dim <= kMaxDim);
  float h[kMaxDim];
  std::copy(x, x + layout.dim, h);
  Hadamard(h, layout.dim);
  for (int i = 0; i < layout.dim; ++i) h[i] = RoundBf16(h[i]);
  uint8_t* codes = reinterpret_cast<uint8_t*>(out);
  uint8_t* scales = codes + layout.dim / 2;
  for (int k = 0; k < layout.dim / 32; ++k) {
    float amax = 0;
    for (int i = 32 * k; i < 32 * (k + 1); ++i) amax = std::max(amax, std::fabs(h[i]));
    scales[k] = Fp4QuantScale(amax);
    const float scale = E8M0ToFloat(scales[k]);
    for (int i = 32 * k; i < 32 * (k + 1); i += 2) {
      codes[i / 2] = static_cast<uint8_t>(FloatToE2M1(h[i] / scale) | FloatToE2M1(h[i + 1] / scale) << 4);
    }
  }
}

void DecodeIndexKey(const IndexKeyLayout& layout, const std::byte* in, float* x) {
  if (layout.format == CacheFormat::kFloat32) {
    std::memcpy(x, in, layout.bytes());
    return;
  }
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(in);
  const uint8_t* scales = codes + layout.dim / 2;
  for (int i = 0; i < layout.dim; ++i) {
    const uint8_t code = i % 2 == 0 ? codes[i / 2] & 15 : codes[i / 2] >> 4;
    x[i] = E2M1ToFloat(code) * E8M0ToFloat(scales[i / 32]);
  }
}

}  // namespace foresight
