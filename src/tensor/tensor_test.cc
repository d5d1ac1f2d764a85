#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace foresight {
namespace {

// Every code and scale that is a number, in rows that end within a scale's block where the format allows it.
TEST(MatrixView, DecodesRowsToItsElements) {
  std::mt19937 rng(1);
  for (const auto& [dtype, cols] : {std::pair(DType::kF32, 7), std::pair(DType::kBF16, 33),
                                    std::pair(DType::kF8E4M3, 300), std::pair(DType::kI8, 96)}) {
    constexpr int kRows = 257;  // three rows of FP8 scales
    MatrixView w{.dtype = dtype, .rows = kRows, .cols = cols};
    std::vector<uint8_t> data(kRows * w.row_bytes());
    std::vector<uint8_t> scales(w.bytes() - kRows * w.row_bytes());
    const bool is_plain = scales.empty();
    for (uint8_t& byte : data) {
      byte = static_cast<uint8_t>(is_plain ? rng() % 64 : rng());  // small: no exponent of a NaN
      if (dtype == DType::kF8E4M3 && (byte & 0x7f) == 0x7f) --byte;
    }
    for (uint8_t& scale : scales) scale = static_cast<uint8_t>(rng() % 255);
    w.data = reinterpret_cast<const std::byte*>(data.data());
    w.scales = scales.data();
    std::vector<float> row(cols);
    for (int64_t r = 0; r < kRows; ++r) {
      w.DecodeRow(r, row.data());
      for (int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(row[c], w.At(r, c)) << DTypeName(dtype) << ", " << r << ", " << c;
      }
    }
  }
}

}  // namespace
}  // namespace foresight
