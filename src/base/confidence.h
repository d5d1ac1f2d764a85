// Confidences from what is known of drafts, the same bits on the host and on every device: nothing but
// operations that IEEE 754 rounds in one way, with the fused ones written out.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define FORESIGHT_HOST_AND_DEVICE __host__ __device__
#else
#define FORESIGHT_HOST_AND_DEVICE
#endif

namespace foresight {

// What a drafter knows of a draft before it is drawn.
struct DraftEvidence {
  float logit = 0;   // of the confidence head
  float margin = 0;  // of a greedy draft: how far its logit stands out (LogitMargin); 0 of others
};

// exp(x) for x in [-700, 700], within 1e-15 of it: 2^n exp(r) with r = x - n log 2 in [-0.35, 0.35], whose
// series is cut behind the 13th power.
FORESIGHT_HOST_AND_DEVICE inline double SteadyExp(double x) {
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2High = 0x1.62e42fee00000p-1;
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  const double n = rint(x * kLog2E);
  const double r = fma(-n, kLn2Low, fma(-n, kLn2High, x));
  double p = 1.0 / 6227020800;
  p = fma(p, r, 1.0 / 479001600);
  p = fma(p, r, 1.0 / 39916800);
  p = fma(p, r, 1.0 / 3628800);
  p = fma(p, r, 1.0 / 362880);
  p = fma(p, r, 1.0 / 40320);
  p = fma(p, r, 1.0 / 5040);
  p = fma(p, r, 1.0 / 720);
  p = fma(p, r, 1.0 / 120);
  p = fma(p, r, 1.0 / 24);
  p = fma(p, r, 1.0 / 6);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  return ldexp(p, static_cast<int>(n));
}

// A confidence is sigmoid((logit + margin_weight * margin) / temperature + shift).
struct ConfidenceScale {
  double temperature = 1;
  double shift = 0;
  double margin_weight = 0;

  // NaN for a logit or margin that is NaN.
  FORESIGHT_HOST_AND_DEVICE double Confidence(const DraftEvidence& evidence) const {
    constexpr double kFarthest = 700;
    double x = fma(margin_weight, double{evidence.margin}, double{evidence.logit}) / temperature + shift;
    if (x != x) return x;
    x = x < -kFarthest ? -kFarthest : x > kFarthest ? kFarthest : x;
    return 1 / (1 + SteadyExp(-x));
  }
};

}  // namespace foresight
