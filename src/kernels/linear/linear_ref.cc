#include <algorithm>

#include "base/thread_pool.h"
#include "kernels/linear/linear.h"

namespace foresight {
namespace {

constexpr int kActBlock = 128;  // act_quant's block in front of a GEMM (model spec 2.1)

bool QuantizesInput(const KernelContext& ctx, const MatrixView& w, LinearNumerics numerics) {
  return ctx.faithful() && numerics == LinearNumerics::kProjection &&
         (w.dtype == DType::kF8E4M3 || w.dtype == DType::kI8);
}

// Four sums, so that an addition needn't wait for the one before: most of the definitions' time is spent
// here.
double Dot(const float* x, const float* w, int64_t k) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += static_cast<double>(x[i + j]) * w[i + j];
  }
  for (; i < k; ++i) sums[0] += static_cast<double>(x[i]) * w[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// One weight against all rows. x_stride and out_stride are in floats.
void Multiply(const KernelContext& ctx, const MatrixView& w, LinearNumerics numerics, int rows,
              const float* x, int64_t x_stride, float* out, int64_t out_stride) {
  const int64_t k = w.cols;
  ArenaScope scope(*ctx.scratch);
  if (QuantizesInput(ctx, w, numerics)) {
    float* q = ctx.scratch->Allocate<float>(rows * k);
    for (int t = 0; t < rows; ++t) {
      std::copy(x + t * x_stride, x + t * x_stride + k, q + t * k);
      for (int64_t b = 0; b < k; b += kActBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kActBlock, k - b));
        ActQuantRoundTrip(q + t * k + b, count, count);
      }
    }
    x = q;
    x_stride = k;
  }
  const bool round_output = ctx.faithful() && numerics != LinearNumerics::kFloat32;
  float* decoded = ctx.scratch->Allocate<float>(ctx.pool->num_threads() * k);
  ctx.pool->ParallelFor(w.rows, [&](int64_t n, int thread) {
    float* row = decoded + thread * k;
    w.DecodeRow(n, row);
    for (int t = 0; t < rows; ++t) {
      const float y = static_cast<float>(Dot(x + t * x_stride, row, k));
      out[t * out_stride + n] = round_output ? RoundBf16(y) : y;
    }
  });
}

}  // namespace

void LinearRef(const KernelContext& ctx, const LinearArgs& args) {
  for (const LinearTarget& target : args.targets) {
    Multiply(ctx, target.w, target.numerics, args.rows, args.x, target.w.cols, target.out.f32(),
             target.w.rows);
  }
}

void GroupedLinearRef(const KernelContext& ctx, const GroupedLinearArgs& args) {
  const int64_t n = args.w.rows / args.groups;
  const int64_t k = args.w.cols;
  ArenaScope scope(*ctx.scratch);
  float* row = ctx.scratch->Allocate<float>(k);
  // Not through MatrixView::Rows: a group's rows need not be a multiple of the FP8 scale block.
  for (int64_t o = 0; o < args.w.rows; ++o) {
    args.w.DecodeRow(o, row);
    const int64_t group = o / n;
    for (int t = 0; t < args.rows; ++t) {
      const float y = static_cast<float>(Dot(args.x.f32() + (t * args.groups + group) * k, row, k));
      args.out[t * args.w.rows + o] = ctx.faithful() ? RoundBf16(y) : y;
    }
  }
}

}  // namespace foresight
