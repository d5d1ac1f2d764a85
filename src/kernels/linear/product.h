// One call's products with stored weights, as the kernels of the linear entries get them.
#pragma once

#include "tensor/tensor.h"

namespace foresight::cuda {

// One weight, or the rows of one group of it. Column c of the product is row c * rows_per_column +
// prepared_row of x.
struct Product {
  MatrixView w;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t prepared_row = 0;
  float* out = nullptr;  // [rows, w.rows]
  bool round_output = false;
};

constexpr int kMaxProducts = 24;  // of one launch

}  // namespace foresight::cuda
