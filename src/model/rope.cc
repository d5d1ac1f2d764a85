#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace foresight {
namespace {

double PlainFrequency(double theta, int pair, int dim) {
  return std::pow(theta, -2.0 * pair / dim);
}

}  // namespace

std::vector<float> WindowRopeFrequencies(const ModelConfig& config) {
  std::vector<float> f(config.qk_rope_head_dim / 2);
  for (size_t i = 0; i < f.size(); ++i) {
    f[i] =
        static_cast<float>(PlainFrequency(config.rope_theta, static_cast<int>(i), config.qk_rope_head_dim));
  }
  return f;
}

std::vector<float> CompressedRopeFrequencies(const ModelConfig& config) {
  const int dim = config.qk_rope_head_dim;
  const double theta = config.compress_rope_theta;
  const RopeScaling& scaling = config.rope_scaling;
  // The pair that turns n times over the original context.
  auto correction = [&](double n) {
    return dim *
           std::log(static_cast<double>(scaling.original_max_position_embeddings) /
                    (n * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  const double low = std::max(std::floor(correction(scaling.beta_fast)), 0.0);
  const double high = std::min(std::ceil(correction(scaling.beta_slow)), dim - 1.0);
  const double width = high > low ? high - low : 0.001;
  std::vector<float> f(dim / 2);
  for (size_t i = 0; i < f.size(); ++i) {
    const double plain = PlainFrequency(theta, static_cast<int>(i), dim);
    const double ramp = std::clamp((static_cast<double>(i) - low) / width, 0.0, 1.0);
    f[i] = static_cast<float>(plain / scaling.factor * ramp + plain * (1 - ramp));
  }
  return f;
}

}  // namespace foresight
