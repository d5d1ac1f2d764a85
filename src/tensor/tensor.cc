#include "tensor/tensor.h"

namespace foresight {

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
  for (int64_t col = 0; col < cols; ++col) out[col] = At(row, col);
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
