// Non-owning views of stored tensors. A view is cheap to copy; what it points to (a mapped file, an arena)
// outlives it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "tensor/dtype.h"
#include "tensor/formats.h"

namespace foresight {

// A stored vector of float32 or bfloat16 (norm weights, sinks, biases), read one value at a time.
struct VectorView {
  DType dtype = DType::kF32;
  int64_t size = 0;
  const std::byte* data = nullptr;

  const float* f32() const {
    DCHECK(dtype == DType::kF32);
    return reinterpret_cast<const float*>(data);
  }
  const bf16* b16() const {
    DCHECK(dtype == DType::kBF16);
    return reinterpret_cast<const bf16*>(data);
  }
  float operator[](int64_t i) const { return dtype == DType::kF32 ? f32()[i] : Bf16ToFloat(b16()[i]); }
  explicit operator bool() const { return data != nullptr; }
};

// A weight matrix [rows (out), cols (in)] in its stored precision, row major; y = W x (model spec 3).
//   kF32, kBF16   plain values, no scales
//   kF8E4M3       scales E8M0 [ceil(rows/128), ceil(cols/128)]
//   kI8 (MXFP4)   data [rows, cols/2] with the low nibble first; scales E8M0 [rows, cols/32]
struct MatrixView {
  DType dtype = DType::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;
  const uint8_t* scales = nullptr;

  const uint8_t* u8() const { return reinterpret_cast<const uint8_t*>(data); }
  const bf16* b16() const { return reinterpret_cast<const bf16*>(data); }
  const float* f32() const { return reinterpret_cast<const float*>(data); }
  // Bytes of one stored row, scales not counted.
  int64_t row_bytes() const {
    return dtype == DType::kI8 ? cols / 2 : cols * static_cast<int64_t>(DTypeBytes(dtype));
  }
  int64_t scale_cols() const { return dtype == DType::kI8 ? cols / 32 : (cols + 127) / 128; }
  // Stored bytes with scales.
  int64_t bytes() const {
    int64_t scale_bytes = 0;
    if (dtype == DType::kF8E4M3) scale_bytes = (rows + 127) / 128 * scale_cols();
    if (dtype == DType::kI8) scale_bytes = rows * scale_cols();
    return rows * row_bytes() + scale_bytes;
  }
  // The exact value of one element: the definition of the storage formats.
  float At(int64_t row, int64_t col) const;
  // out[0, cols): one row's exact values.
  void DecodeRow(int64_t row, float* out) const;
  // Rows [begin, begin + count) as a matrix of its own; for kF8E4M3 begin is a multiple of 128.
  MatrixView Rows(int64_t begin, int64_t count) const;
  explicit operator bool() const { return data != nullptr; }
};

// Where a step's activations go, rows one after another: float32 or, where every value is one anyway,
// bfloat16.
struct ActivationBuffer {
  DType dtype = DType::kF32;
  void* data = nullptr;

  ActivationBuffer() = default;
  ActivationBuffer(float* x) : dtype(DType::kF32), data(x) {}  // NOLINT(google-explicit-constructor)
  ActivationBuffer(bf16* x) : dtype(DType::kBF16), data(x) {}  // NOLINT(google-explicit-constructor)

  float* f32() const {
    DCHECK(dtype == DType::kF32);
    return static_cast<float*>(data);
  }
};

// The same to be read.
struct ActivationView {
  DType dtype = DType::kF32;
  const void* data = nullptr;

  ActivationView() = default;
  ActivationView(const float* x) : dtype(DType::kF32), data(x) {}  // NOLINT(google-explicit-constructor)
  ActivationView(const bf16* x) : dtype(DType::kBF16), data(x) {}  // NOLINT(google-explicit-constructor)
  ActivationView(const ActivationBuffer& x)                        // NOLINT(google-explicit-constructor)
      : dtype(x.dtype), data(x.data) {}

  const float* f32() const {
    DCHECK(dtype == DType::kF32);
    return static_cast<const float*>(data);
  }
  const bf16* b16() const {
    DCHECK(dtype == DType::kBF16);
    return static_cast<const bf16*>(data);
  }
};

}  // namespace foresight
