// The scores of a row's tokens, of which the largest is drawn: log-weight plus Gumbel noise, exactly, and
// quickly from above.
#pragma once

#include "kernels/sampling/sampling.h"

namespace foresight::cuda {

// What is no number is +inf, and so is the largest logit of its row.
__device__ inline float Checked(float logit) {
  return logit < INFINITY ? logit : INFINITY;
}

__device__ inline bool CanDraw(float largest) {
  return largest > -INFINITY && largest < INFINITY;
}

// Rounded as on the host, where products and sums aren't contracted.
__device__ inline double LogWeight(float logit, float largest, double inverse_temperature) {
  return __dmul_rn(__dsub_rn(logit, largest), inverse_temperature);
}

__device__ inline bool IsKept(float logit, int token, const RowCut& cut) {
  return logit > cut.logit || (logit == cut.logit && token <= cut.token);
}

__device__ inline double Probability(const float* logits, int token, const RowStatistics& statistics,
                                     const SampleRow& row) {
  const double w = LogWeight(logits[token], statistics.largest, row.inverse_temperature);
  const bool is_in = w >= row.lowest_log_weight && IsKept(logits[token], token, statistics.cut);
  return is_in ? exp(w - statistics.log_normalizer) : 0;
}

// 53 random bits of a token (base/rng.h), and the noise that they make (sampling/distribution.cc).
__device__ inline uint64_t NoiseBits(uint64_t state, int token) {
  uint64_t z = state + (static_cast<uint64_t>(token) + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return (z ^ (z >> 31)) >> 11;
}

__device__ inline double Gumbel(uint64_t bits) {
  return -log(-log1p(__dmul_rn(-__dadd_rn(static_cast<double>(bits), 0.5), 0x1p-53)));
}

// Within 2e-4 of Gumbel.
__device__ inline float RoughGumbel(uint64_t bits) {
  const bool upper = bits >> 52;  // near 1 it is the distance from 1 that counts
  const uint64_t distance = upper ? (uint64_t{1} << 53) - bits : bits;
  const auto high = static_cast<uint32_t>(distance >> 21);
  const float part = high >> 17 != 0 ? static_cast<float>(high) * 0x1p-32f
                                     : (static_cast<float>(distance) + (upper ? -0.5f : 0.5f)) * 0x1p-53f;
  float exponential = -__logf(upper ? part : 1 - part);
  if (!upper && part < 0.02f) exponential = part * (1 + part * (0.5f + part * (1 / 3.0f)));
  return -__logf(exponential);
}

// How far scores in float32 may lie from the exact ones, for tokens that can win a row: their weights are at
// least 1e-18 of the largest one.
constexpr float kBoundMargin = 2e-3f;
constexpr float kProbabilityMargin = 1e-4f;  // relative

// kCuts: the row may be cut, or what its draft was drawn from.
template <bool kCuts>
class Scores {
 public:
  // `largest`: of the row, or of a part of it whose scores are then above those of the row by the same
  // amount. `residual`: of p - q, which takes the row's normaliser.
  __device__ Scores(const SampleRow& row, float largest, const RowCut& cut, double log_normalizer,
                    bool residual)
      : row_(row),
        largest_(largest),
        cut_(cut),
        inverse_(static_cast<float>(row.inverse_temperature)),
        lowest_(static_cast<float>(fmax(row.lowest_log_weight, -3e38)) * 1.0001f - kBoundMargin),
        log_normalizer_(log_normalizer),
        residual_(residual) {
    if (!residual || row.draft_logits == nullptr) return;
    draft_largest_ = row.draft_statistics->largest;
    draft_log_normalizer_ = static_cast<float>(row.draft_statistics->log_normalizer);
  }

  // At least as large as Exact, or the token can't win the row.
  __device__ float Bound(int token, float logit) const {
    if (row_.inverse_temperature == 0) return logit;
    float w = (logit - largest_) * inverse_;
    if (!(w >= lowest_) || (kCuts && !IsKept(logit, token, cut_))) return -INFINITY;
    if (residual_) {
      float left = expf(w - static_cast<float>(log_normalizer_)) * (1 + kProbabilityMargin);
      if (row_.draft_logits == nullptr) {
        left = token == row_.draft ? 0.0f : left;
      } else {
        const float draft_logit = row_.draft_logits[token];
        const float wq = (draft_logit - draft_largest_) * inverse_;
        const bool surely_in =
            wq >= static_cast<float>(fmax(row_.lowest_log_weight, -3e38)) * 0.9999f + kBoundMargin;
        if ((row_.lowest_log_weight < -1e30 || surely_in) &&
            (!kCuts || IsKept(draft_logit, token, row_.draft_statistics->cut))) {
          left -= expf(wq - draft_log_normalizer_) * (1 - kProbabilityMargin);
        }
      }
      if (!(left > 0)) return -INFINITY;
      w = logf(left);
    }
    return w + RoughGumbel(NoiseBits(row_.noise, token)) + kBoundMargin;
  }

  // Whether Bound is never more than two margins above Exact.
  __device__ bool IsTight() const {
    return row_.inverse_temperature == 0 || (!residual_ && row_.lowest_log_weight == -DBL_MAX);
  }

  // -inf: the token can't be drawn.
  __device__ double Exact(int token, float logit) const {
    if (row_.inverse_temperature == 0) return logit;
    double w = LogWeight(logit, largest_, row_.inverse_temperature);
    if (!(w >= row_.lowest_log_weight) || (kCuts && !IsKept(logit, token, cut_))) return -INFINITY;
    if (residual_) {
      const double q = row_.draft_logits == nullptr
                           ? (token == row_.draft ? 1.0 : 0.0)
                           : Probability(row_.draft_logits, token, *row_.draft_statistics, row_);
      const double left = exp(w - log_normalizer_) - q;
      if (!(left > 0)) return -INFINITY;
      w = log(left);
    }
    return __dadd_rn(w, Gumbel(NoiseBits(row_.noise, token)));
  }

 private:
  const SampleRow& row_;
  float largest_;
  RowCut cut_;
  float inverse_;
  float lowest_;
  double log_normalizer_;
  bool residual_;
  float draft_largest_;  // where the draft was drawn
  float draft_log_normalizer_;
};

}  // namespace foresight::cuda
