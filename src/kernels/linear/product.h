// One call's products with stored weights, as the kernels of the linear entries get them.
#pragma once

#include "tensor/tensor.h"

namespace foresight::cuda {

// How a product's float32 sums are stored.
enum class OutputType : uint8_t { kFloat32, kRounded, kBf16 };  // rounded: to bf16, in float32

// One weight, or the rows of one group of it. Column c of the product is row c * rows_per_column +
// prepared_row of x.
struct Product {
  MatrixView w;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t prepared_row = 0;
  void* out = nullptr;  // [rows, w.rows]
  OutputType output = OutputType::kFloat32;
};

constexpr int kMaxProducts = 24;  // of one launch

}  // namespace foresight::cuda
