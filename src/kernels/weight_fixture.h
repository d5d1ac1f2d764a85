// For tests of kernels: random weights in every stored format, and how far results are from each other.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "tensor/tensor.h"

namespace foresight {

// A random weight; the view stays valid when it moves.
struct RandomMatrix {
  std::vector<uint8_t> data;
  std::vector<uint8_t> scales;
  MatrixView view;

  RandomMatrix(DType dtype, int64_t rows, int64_t cols, std::mt19937& rng) {
    view = {.dtype = dtype, .rows = rows, .cols = cols};
    data.resize(static_cast<size_t>(rows * view.row_bytes()));
    std::normal_distribution<float> normal(0, 0.1f);
    if (dtype == DType::kF32 || dtype == DType::kBF16) {
      for (int64_t i = 0; i < rows * cols; ++i) {
        const float x = normal(rng);
        const bf16 b = FloatToBf16(x);
        if (dtype == DType::kF32) {
          std::memcpy(data.data() + 4 * i, &x, 4);
        } else {
          std::memcpy(data.data() + 2 * i, &b, 2);
        }
      }
    } else {
      for (uint8_t& code : data) {
        code = static_cast<uint8_t>(rng());
        if (dtype == DType::kF8E4M3 && (code & 0x7f) == 0x7f) code ^= 1;  // no NaN
      }
      const int64_t scale_rows = dtype == DType::kI8 ? rows : (rows + 127) / 128;
      scales.resize(static_cast<size_t>(scale_rows * view.scale_cols()));
      for (uint8_t& s : scales) s = static_cast<uint8_t>(114 + rng() % 12);
    }
    view.data = reinterpret_cast<const std::byte*>(data.data());
    view.scales = scales.empty() ? nullptr : scales.data();
  }
  RandomMatrix(RandomMatrix&&) = default;
};

inline std::vector<float> RandomRows(int64_t rows, int64_t cols, bool bf16_values, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(rows * cols));
  for (float& v : x) v = bf16_values ? RoundBf16(normal(rng)) : normal(rng);
  return x;
}

inline double RelativeL2(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - want[i];
    error += difference * difference;
    norm += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace foresight
