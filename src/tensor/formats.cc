#include "tensor/formats.h"

#include <algorithm>
#include <array>
#include <limits>

namespace foresight {
namespace {

constexpr std::array<float, 8> kE2M1 = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f};

// ceil(log2(x)) of a positive normal float, from its bits.
int CeilLog2(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7fffff) != 0);
}

float MaxAbs(const float* x, int count) {
  float amax = 0;
  for (int i = 0; i < count; ++i) amax = std::max(amax, std::fabs(x[i]));
  return amax;
}

float ComputeE8M0(uint8_t byte) {
  if (byte == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::ldexp(1.0f, static_cast<int>(byte) - 127);
}

float ComputeE4M3(uint8_t byte) {
  const int exponent = (byte >> 3) & 15;
  const int mantissa = byte & 7;
  if ((byte & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (byte & 0x80) ? -magnitude : magnitude;
}

// Decoding is a look-up: references read every weight through it.
std::array<float, 256> MakeTable(float (*compute)(uint8_t)) {
  std::array<float, 256> table;
  for (int b = 0; b < 256; ++b) table[b] = compute(static_cast<uint8_t>(b));
  return table;
}
const std::array<float, 256> kE8M0 = MakeTable(ComputeE8M0);
const std::array<float, 256> kE4M3 = MakeTable(ComputeE4M3);

}  // namespace

float E8M0ToFloat(uint8_t byte) {
  return kE8M0[byte];
}

float E4M3ToFloat(uint8_t byte) {
  return kE4M3[byte];
}

uint8_t FloatToE4M3(float x) {
  if (std::isnan(x)) return 0x7f;
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const float a = std::fabs(x);
  if (a >= 448.f) return sign | 0x7e;
  // The grid's step at a: 2^(exponent-3), never below the subnormal step 2^-9.
  const int exponent = std::max(a > 0 ? std::ilogb(a) : -6, -6);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(a, 3 - exponent)));  // 0..16, ties to even
  if (exponent == -6 && steps < 8) return sign | static_cast<uint8_t>(steps);       // subnormal
  // steps == 16 carries into the next exponent by plain addition.
  return sign | static_cast<uint8_t>(((exponent + 7) << 3) + (steps - 8));
}

float E2M1ToFloat(uint8_t code) {
  return (code & 8) ? -kE2M1[code & 7] : kE2M1[code & 7];
}

uint8_t FloatToE2M1(float x) {
  const uint8_t sign = std::signbit(x) ? 8 : 0;
  const float a = std::fabs(x);
  // Midpoints .25 .75 1.25 1.75 2.5 3.5 5; a tie goes to the even code.
  constexpr std::array<float, 7> kMid = {.25f, .75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.f};
  uint8_t code = 0;
  for (size_t i = 0; i < kMid.size(); ++i) {
    if (a > kMid[i] || (a == kMid[i] && (i % 2) == 1)) code = static_cast<uint8_t>(i + 1);
  }
  return sign | code;
}

uint8_t ActQuantScale(float amax) {
  const float t = std::max(amax, 1e-4f) * (1.0f / 448.0f);
  return static_cast<uint8_t>(std::clamp(CeilLog2(t) + 127, 0, 254));
}

uint8_t Fp4QuantScale(float amax) {
  const float t = std::max(amax, 6.0f * std::ldexp(1.0f, -126)) / 6.0f;
  return static_cast<uint8_t>(std::clamp(CeilLog2(t) + 127, 0, 254));
}

void ActQuantRoundTrip(float* x, int count, int block) {
  for (int b = 0; b < count; b += block) {
    const float scale = E8M0ToFloat(ActQuantScale(MaxAbs(x + b, block)));
    for (int i = b; i < b + block; ++i) x[i] = E4M3ToFloat(FloatToE4M3(x[i] / scale)) * scale;
  }
}

void Fp4RoundTrip(float* x, int count, int block) {
  for (int b = 0; b < count; b += block) {
    const float scale = E8M0ToFloat(Fp4QuantScale(MaxAbs(x + b, block)));
    for (int i = b; i < b + block; ++i) x[i] = E2M1ToFloat(FloatToE2M1(x[i] / scale)) * scale;
  }
}

void Hadamard(float* x, int n) {
  for (int half = 1; half < n; half *= 2) {
    for (int base = 0; base < n; base += 2 * half) {
      for (int i = base; i < base + half; ++i) {
        const float a = x[i];
        const float b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(n));
  for (int i = 0; i < n; ++i) x[i] *= scale;
}

}  // namespace foresight
