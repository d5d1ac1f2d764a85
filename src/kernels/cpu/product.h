// The one matrix product of the CPU tables: out[r, n] = sum_k w[n, k] * x[r, k].
//
// An output element is kLanes partial sums, each over its own residue of K in ascending order, the first
// terms of x before the second ones, added by one fixed tree. That is all its arithmetic, so it is the same
// bit for bit for any number of rows, outputs and threads.
#pragma once

#include "kernels/cpu/activations.h"

namespace foresight::FORESIGHT_ISA {

// Outputs [begin, end) of rows [0, rows). Row r of x is packed row ids[r] (r itself without ids).
struct Product {
  const MatrixView* w = nullptr;
  int64_t begin = 0;
  int64_t end = 0;
  PackedRows x;
  const int32_t* ids = nullptr;
  int rows = 0;
  float* out = nullptr;  // element (r, n) at out[r * out_stride + n - begin]
  int64_t out_stride = 0;
  bool round_to_bf16 = false;
  std::byte* scratch = nullptr;  // ProductScratchBytes(), of this thread
  // The weights that this thread reads afterwards, if that is known: the last rows here fetch the first ones
  // there.
  const std::byte* next = nullptr;

  const std::byte* Row(int r) const { return x.data + (ids == nullptr ? r : ids[r]) * x.stride; }
};

void Multiply(const Product& product);

namespace {

constexpr int kFewRows = 8;
constexpr int kOutputs = 4;  // computed side by side
#ifdef FORESIGHT_AVX512
constexpr int kMicroRows = 6;
#else
constexpr int kMicroRows = 3;
#endif
constexpr int kPanelOutputs = 32;
constexpr int64_t kPanelBytes = int64_t{512} << 10;
// Jobs of many rows are cut here: enough to hide the decoding of a panel, few enough to share among threads.
constexpr int kJobRows = 84 * 6;

constexpr Order OrderOf(DType dtype) {
  switch (dtype) {
    case DType::kF8E4M3:
      return Fp8Format::kOrder;
    case DType::kI8:
      return Mxfp4Format::kOrder;
    case DType::kBF16:
      return Bf16Format::kOrder;
    default:
      return F32Format::kOrder;
  }
}

// Outputs whose decoded rows fit the panel.
inline int PanelOutputs(const MatrixView& w) {
  const int64_t fit = kPanelBytes / PaddedBytes(OrderOf(w.dtype), w.cols) / kOutputs * kOutputs;
  return static_cast<int>(fit < kOutputs ? kOutputs : fit > kPanelOutputs ? kPanelOutputs : fit);
}

inline int64_t ProductScratchBytes(const MatrixView& w, int rows) {
  if (rows <= kFewRows) return 0;
  const int64_t panel = PanelOutputs(w) * PaddedBytes(OrderOf(w.dtype), w.cols);
  return panel + int64_t{kPanelOutputs} * kMicroRows * sizeof(Vec);
}

}  // namespace
}  // namespace foresight::FORESIGHT_ISA
