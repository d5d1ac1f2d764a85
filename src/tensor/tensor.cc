#include "tensor/tensor.h"

#include <algorithm>
#include <array>

namespace foresight {
namespace {

template <size_t kCodes>
std::array<float, kCodes> TableOf(float (*value)(uint8_t)) {
  std::array<float, kCodes> table;
  for (size_t code = 0; code < kCodes; ++code) table[code] = value(static_cast<uint8_t>(code));
  return table;
}

}  // namespace

float MatrixView::At(int64_t row, int64_t col) const {
  switch (dtype) {
    case DType::kF32:
      return f32()[row * cols + col];
    case DType::kBF16:
      return Bf16ToFloat(b16()[row * cols + col]);
    case DType::kF8E4M3:
      return E4M3ToFloat(u8()[row * cols + col]) *
             E8M0ToFloat(scales[(row / 128) * scale_cols() + col / 128]);
    case DType::kI8: {
      const uint8_t pair = u8()[row * (cols / 2) + col / 2];
      const uint8_t code = col % 2 == 0 ? pair & 15 : pair >> 4;
      return E2M1ToFloat(code) * E8M0ToFloat(scales[row * scale_cols() + col / 32]);
    }
    case DType::kF8E8M0:
    case DType::kI64:
      break;
  }
  CHECK(false, "a matrix can't be stored as {}", DTypeName(dtype));
}

void MatrixView::DecodeRow(int64_t row, float* out) const {
  // References read every weight through here: a scale is looked up once, and values in tables.
  switch (dtype) {
    case DType::kF8E4M3: {
      static const std::array<float, 256> values = TableOf<256>(E4M3ToFloat);
      for (int64_t begin = 0; begin < cols; begin += 128) {
        const float scale = E8M0ToFloat(scales[row / 128 * scale_cols() + begin / 128]);
        const int64_t end = std::min(begin + 128, cols);
        for (int64_t col = begin; col < end; ++col) out[col] = values[u8()[row * cols + col]] * scale;
      }
      return;
    }
    case DType::kI8: {
      static const std::array<float, 16> values = TableOf<16>(E2M1ToFloat);
      for (int64_t begin = 0; begin < cols; begin += 32) {
        const float scale = E8M0ToFloat(scales[row * scale_cols() + begin / 32]);
        for (int64_t col = begin; col < begin + 32; col += 2) {
          const uint8_t pair = u8()[(row * cols + col) / 2];
          out[col] = values[pair & 15] * scale;
          out[col + 1] = values[pair >> 4] * scale;
        }
      }
      return;
    }
    default:
      for (int64_t col = 0; col < cols; ++col) out[col] = At(row, col);
  }
}

MatrixView MatrixView::Rows(int64_t begin, int64_t count) const {
  CHECK(begin >= 0 && count >= 0 && begin + count <= rows, "rows {}+{} of {}", begin, count, rows);
  MatrixView v = *this;
  v.rows = count;
  v.data = data + begin * row_bytes();
  if (dtype == DType::kF8E4M3) {
    CHECK(begin % 128 == 0, "an FP8 matrix is cut at multiples of 128 rows, not at {}", begin);
    v.scales = scales + begin / 128 * scale_cols();
  }
  if (dtype == DType::kI8) v.scales = scales + begin * scale_cols();
  return v;
}

}  // namespace foresight
