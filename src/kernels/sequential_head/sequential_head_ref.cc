#include <algorithm>
#include <cmath>

#include "kernels/sequential_head/sequential_head.h"

namespace foresight {
namespace {

double Sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// y[n] = w[n] . x + bias[n], x the concatenation of up to three parts.
class Concatenated {
 public:
  Concatenated(const KernelContext& ctx, int64_t size)
      : x_(ctx.scratch->Allocate<float>(size)), row_(ctx.scratch->Allocate<float>(size)) {}

  Concatenated& Add(const float* part, int64_t count) {
    std::copy(part, part + count, x_ + size_);
    size_ += count;
    return *this;
  }
  double Dot(const MatrixView& w, int64_t n) const {
    CHECK(w.cols == size_);
    w.DecodeRow(n, row_);
    double sum = 0;
    for (int64_t i = 0; i < size_; ++i) sum += static_cast<double>(row_[i]) * x_[i];
    return sum;
  }

 private:
  float* x_;
  float* row_;
  int64_t size_ = 0;
};

}  // namespace

void SequentialHeadRef(const KernelContext& ctx, const SequentialHeadArgs& args) {
  const SequentialHeadWeights& w = *args.weights;
  const int64_t rank = w.rank();
  const int64_t dim = args.dim;
  for (int r = 0; r < args.rows; ++r) {
    ArenaScope scope(*ctx.scratch);
    const float* h = args.hidden + r * dim;
    float* e = ctx.scratch->Allocate<float>(rank);
    if (rank > 0) w.w1.DecodeRow(args.previous[r], e);
    if (w.confidence && args.confidence != nullptr) {
      Concatenated z(ctx, dim + rank);
      args.confidence[r] = static_cast<float>(z.Add(h, dim).Add(e, rank).Dot(w.confidence, 0));
    }
    if (rank == 0 || args.logits == nullptr) continue;
    float* x = ctx.scratch->Allocate<float>(rank);
    if (w.type == MarkovHeadType::kVanilla) {
      std::copy(e, e + rank, x);
    } else if (w.type == MarkovHeadType::kGated) {
      Concatenated z(ctx, dim + rank);
      z.Add(h, dim).Add(e, rank);
      for (int64_t i = 0; i < rank; ++i) {
        x[i] = static_cast<float>(Sigmoid(z.Dot(w.proj, i) + w.bias[i]) * e[i]);
      }
    } else {
      float* state = args.state + r * rank;
      Concatenated z(ctx, dim + 2 * rank);
      z.Add(state, rank).Add(e, rank).Add(h, dim);
      for (int64_t i = 0; i < rank; ++i) {
        const double keep = Sigmoid(z.Dot(w.proj, i) + w.bias[i]);
        const double candidate = std::tanh(z.Dot(w.proj, rank + i) + w.bias[rank + i]);
        x[i] = static_cast<float>(std::tanh(z.Dot(w.proj, 2 * rank + i) + w.bias[2 * rank + i]));
        state[i] = static_cast<float>(keep * state[i] + (1 - keep) * candidate);
      }
    }
    float* logits = args.logits + r * w.w2.rows;
    Concatenated input(ctx, rank);
    input.Add(x, rank);
    for (int64_t n = 0; n < w.w2.rows; ++n) logits[n] = static_cast<float>(logits[n] + input.Dot(w.w2, n));
  }
}

}  // namespace foresight
