#include <algorithm>
#include <cmath>

#include "base/thread_pool.h"
#include "kernels/hyper_connection/hyper_connection.h"
#include "kernels/taps/taps.h"

namespace foresight {
namespace {

constexpr int kMaxStreams = 8;

double Sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

// mix[i] = fn_i . z / rms(z), one mean over all streams (model spec 2.3).
void MixLogits(const MatrixView& fn, const float* z, float eps, double* mix) {
  double squares = 0;
  for (int64_t i = 0; i < fn.cols; ++i) squares += static_cast<double>(z[i]) * z[i];
  const double rinv = 1.0 / std::sqrt(squares / static_cast<double>(fn.cols) + eps);
  for (int64_t o = 0; o < fn.rows; ++o) {
    double sum = 0;
    for (int64_t i = 0; i < fn.cols; ++i) sum += static_cast<double>(fn.f32()[o * fn.cols + i]) * z[i];
    mix[o] = sum * rinv;
  }
}

// Row softmax, then alternating normalisations that end with the columns (model spec 2.3).
void Sinkhorn(int m, int iters, double eps, double* c) {
  for (int j = 0; j < m; ++j) {
    double* row = c + j * m;
    const double top = *std::max_element(row, row + m);
    double sum = 0;
    for (int k = 0; k < m; ++k) sum += row[k] = std::exp(row[k] - top);
    for (int k = 0; k < m; ++k) row[k] = row[k] / sum + eps;
  }
  auto normalise = [&](int outer_stride, int inner_stride) {
    for (int o = 0; o < m; ++o) {
      double sum = eps;
      for (int i = 0; i < m; ++i) sum += c[o * outer_stride + i * inner_stride];
      for (int i = 0; i < m; ++i) c[o * outer_stride + i * inner_stride] /= sum;
    }
  };
  normalise(1, m);  // columns
  for (int i = 1; i < iters; ++i) {
    normalise(m, 1);
    normalise(1, m);
  }
}

// out[i] = sum_j weight_j * streams[j][i], then the RMSNorm of it. `mixed` receives the value before the
// norm.
void MixAndNorm(bool faithful, int m, int dim, const float* streams, const double* weight,
                const VectorView& norm, double norm_eps, float* mixed, float* out) {
  double squares = 0;
  for (int i = 0; i < dim; ++i) {
    double sum = 0;
    for (int j = 0; j < m; ++j) sum += weight[j] * streams[j * dim + i];
    mixed[i] = static_cast<float>(sum);
    if (faithful) mixed[i] = RoundBf16(mixed[i]);
    squares += static_cast<double>(mixed[i]) * mixed[i];
  }
  const double rinv = 1.0 / std::sqrt(squares / dim + norm_eps);
  for (int i = 0; i < dim; ++i) {
    const float y = static_cast<float>(norm[i] * (mixed[i] * rinv));
    out[i] = faithful ? RoundBf16(y) : y;
  }
}

}  // namespace

void EmbedRef(const KernelContext&, const EmbedArgs& args) {
  const int64_t dim = args.embed.cols;
  for (int t = 0; t < args.rows; ++t) {
    const int32_t* const placed = args.placed != nullptr ? args.placed[t] : nullptr;
    const int32_t token = placed != nullptr ? *placed : args.tokens[t];
    if (placed != nullptr) args.placed_in[t] = token;
    for (int j = 0; j < args.m; ++j)
      args.embed.DecodeRow(token, args.streams + (int64_t{t} * args.m + j) * dim);
  }
}

void HyperConnectionPostRef(const KernelContext& ctx, const HyperConnectionPostArgs& args) {
  const int m = args.m;
  CHECK(m <= kMaxStreams);
  for (int64_t t = 0; t < args.rows; ++t) {
    float* streams = args.streams + t * m * args.dim;
    for (int i = 0; i < args.dim; ++i) {
      float mixed[kMaxStreams];
      for (int k = 0; k < m; ++k) {
        double sum = static_cast<double>(args.back.post[t * m + k]) * args.back.x[t * args.dim + i];
        for (int j = 0; j < m; ++j)
          sum += static_cast<double>(args.back.comb[(t * m + j) * m + k]) * streams[j * args.dim + i];
        mixed[k] = static_cast<float>(sum);
      }
      for (int k = 0; k < m; ++k) streams[k * args.dim + i] = ctx.faithful() ? RoundBf16(mixed[k]) : mixed[k];
    }
  }
}

void HyperConnectionPreRef(const KernelContext& ctx, const HyperConnectionPreArgs& args) {
  const int m = args.m;
  CHECK(m <= kMaxStreams);
  if (args.back.x != nullptr) HyperConnectionPostRef(ctx, {args.rows, m, args.dim, args.back, args.streams});
  StoreTapRef(ctx, {args.tap.sequences, m, args.dim, args.tap.offset, args.streams});
  ctx.pool->ParallelFor(args.rows, [&](int64_t t, int) {
    const float* streams = args.streams + t * m * args.dim;
    double mix[kMaxStreams * (2 + kMaxStreams)];
    MixLogits(args.fn, streams, args.norm_eps, mix);
    double pre[kMaxStreams];
    double comb[kMaxStreams * kMaxStreams];
    for (int j = 0; j < m; ++j) {
      pre[j] = Sigmoid(mix[j] * args.scale[0] + args.base[j]) + args.hc_eps;
      args.post[t * m + j] = static_cast<float>(2 * Sigmoid(mix[m + j] * args.scale[1] + args.base[m + j]));
    }
    for (int i = 0; i < m * m; ++i) comb[i] = mix[2 * m + i] * args.scale[2] + args.base[2 * m + i];
    Sinkhorn(m, args.sinkhorn_iters, args.hc_eps, comb);
    for (int i = 0; i < m * m; ++i) args.comb[t * m * m + i] = static_cast<float>(comb[i]);
    float* x = args.x + t * args.dim;
    MixAndNorm(ctx.faithful(), m, args.dim, streams, pre, args.norm, args.norm_eps, x, x);
  });
}

void HyperHeadRef(const KernelContext& ctx, const HyperHeadArgs& args) {
  const int m = args.m;
  CHECK(m <= kMaxStreams);
  if (args.back.x != nullptr) HyperConnectionPostRef(ctx, {args.rows, m, args.dim, args.back, args.streams});
  StoreTapRef(ctx, {args.tap.sequences, m, args.dim, args.tap.offset, args.streams});
  for (int r = 0; r < args.rows; ++r) {
    const float* streams = args.streams + int64_t{args.row_ids[r]} * m * args.dim;
    double mix[kMaxStreams];
    MixLogits(args.fn, streams, args.norm_eps, mix);
    for (int j = 0; j < m; ++j) mix[j] = Sigmoid(mix[j] * args.scale[0] + args.base[j]) + args.hc_eps;
    float* out = args.out + int64_t{r} * args.dim;
    float* hidden = args.hidden != nullptr ? args.hidden + int64_t{r} * args.dim : out;
    MixAndNorm(ctx.faithful(), m, args.dim, streams, mix, args.norm, args.norm_eps, hidden, out);
  }
}

}  // namespace foresight
