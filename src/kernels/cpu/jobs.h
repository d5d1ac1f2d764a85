// How a product is cut into jobs. Only speed depends on it (product.h).
#pragma once

#include "kernels/cpu/product.h"

namespace foresight::FORESIGHT_ISA {
namespace {

// Below this many weight bytes a second thread costs more than it brings (a parallel region is about a
// microsecond).
constexpr int64_t kInlineBytes = int64_t{48} << 10;
// Weight bytes of one job when weights are read once. Where one job ends and the next begins the fetching
// ahead goes astray: long jobs for large matrices, of which every thread still gets many; of small ones,
// enough to balance.
constexpr int64_t kLongJobBytes = int64_t{1} << 20;
constexpr int64_t kLongJobsOfThread = 16;
constexpr int64_t kShortJobBytes = int64_t{128} << 10;
constexpr int64_t kShortJobsOfThread = 4;

// Outputs per job for `outputs` outputs of w and `rows` rows.
inline int64_t JobOutputs(const MatrixView& w, int64_t outputs, int rows, int threads) {
  if (rows > kFewRows) return PanelOutputs(w);
  const int64_t row_bytes = w.row_bytes() < 1 ? 1 : w.row_bytes();
  const auto limited = [&](int64_t bytes, int64_t jobs_of_thread) {
    const int64_t fit = bytes / row_bytes;
    const int64_t balanced = outputs / (jobs_of_thread * threads);
    return fit < balanced ? fit : balanced;
  };
  const int64_t in_long = limited(kLongJobBytes, kLongJobsOfThread);
  const int64_t in_short = limited(kShortJobBytes, kShortJobsOfThread);
  const int64_t n = (in_long > in_short ? in_long : in_short) / kOutputs * kOutputs;
  return n < kOutputs ? kOutputs : n;
}

inline int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// body(index, thread) for all indices; on the calling thread alone when `bytes` of weights are few.
template <typename Body>
void ForJobs(const KernelContext& ctx, int64_t count, int64_t bytes, Body&& body) {
  if (bytes <= kInlineBytes) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
  } else {
    ctx.pool->ParallelFor(count, body);
  }
}

// Packs `rows` rows of k values, x_stride floats apart.
inline PackedRows Pack(const KernelContext& ctx, const float* x, int64_t x_stride, int64_t rows, int64_t k,
                       const Form& form) {
  const int64_t stride = PackedStride(form, k);
  const int64_t term_bytes = PaddedBytes(form.order, k);
  std::byte* out = ctx.scratch->Allocate<std::byte>(rows * stride);
  ForJobs(ctx, rows, rows * k * static_cast<int64_t>(sizeof(float)),
          [&](int64_t r, int) { PackRow(x + r * x_stride, k, form, term_bytes, out + r * stride); });
  return {out, stride, form.terms};
}

// The form of the rows that meet weights of this type. In faithful numerics they are bf16 values (linear.h),
// and act_quant stands in front of FP8 and MXFP4 projections (model spec 6.2).
inline Form FormOf(const KernelContext& ctx, DType dtype, bool is_projection) {
  const bool quantize = ctx.faithful() && is_projection && (dtype == DType::kF8E4M3 || dtype == DType::kI8);
  return {OrderOf(dtype), quantize, TermsOf(OrderOf(dtype), ctx.faithful())};
}

}  // namespace
}  // namespace foresight::FORESIGHT_ISA
