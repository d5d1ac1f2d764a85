// Compiled without contraction of products and sums to fused ones: processors with and without them shall
// agree.
#include "sampling/sum_exp.h"

#include <cstdint>
#include <cstring>

namespace foresight {
namespace {

// Eight lanes, of which the compiler makes as many instructions as the processor needs.
using Lanes = double __attribute__((vector_size(64)));
using LaneBits = int64_t __attribute__((vector_size(64)));
constexpr size_t kLanes = 8;

// exp(x) = 2^n exp(r) with r = x - n log 2 in [-0.35, 0.35], whose series is cut behind the 13th power
// (1e-17).
// Adds it to `sum`.
__attribute__((always_inline)) inline void AddExp(Lanes& x, Lanes& sum) {
  constexpr double kShifter = 0x1.8p52;  // leaves n in the low bits of the sum
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2High = 0x1.62e42fee00000p-1;
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kLowest = -708;  // 2^n stays a normal number; what is below adds nothing
  const LaneBits there = x >= kLowest;
  x = there ? x : Lanes{};
  const Lanes shifted = x * kLog2E + kShifter;
  const Lanes n = shifted - kShifter;
  const Lanes r = (x - n * kLn2High) - n * kLn2Low;
  Lanes p = Lanes{} + 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  LaneBits bits, exponents;
  std::memcpy(&bits, &p, sizeof(bits));
  std::memcpy(&exponents, &shifted, sizeof(exponents));
  bits += exponents << 52;
  std::memcpy(&p, &bits, sizeof(p));
  sum += there ? p : Lanes{};
}

__attribute__((always_inline)) inline double Sum(std::span<const double> x) {
  Lanes sums[2] = {};
  size_t i = 0;
  for (; i + 2 * kLanes <= x.size(); i += 2 * kLanes) {
    Lanes a, b;
    std::memcpy(&a, &x[i], sizeof(a));
    std::memcpy(&b, &x[i + kLanes], sizeof(b));
    AddExp(a, sums[0]);
    AddExp(b, sums[1]);
  }
  for (; i < x.size(); i += kLanes) {
    Lanes rest = Lanes{} - 1e300;
    std::memcpy(&rest, &x[i], sizeof(double) * (x.size() - i < kLanes ? x.size() - i : kLanes));
    AddExp(rest, sums[0]);
  }
  sums[0] += sums[1];
  double sum = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) sum += sums[0][lane];
  return sum;
}

double SumBaseline(std::span<const double> x) {
  return Sum(x);
}
__attribute__((target("avx2"))) double SumAvx2(std::span<const double> x) {
  return Sum(x);
}
__attribute__((target("avx512f"))) double SumAvx512(std::span<const double> x) {
  return Sum(x);
}

}  // namespace

// Not by target_clones, whose choice is made before a sanitizer's runtime is ready for it.
double SumExp(std::span<const double> x) {
  static const auto sum = __builtin_cpu_supports("avx512f") ? SumAvx512
                          : __builtin_cpu_supports("avx2")  ? SumAvx2
                                                            : SumBaseline;
  return sum(x);
}

}  // namespace foresight
