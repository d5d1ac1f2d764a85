#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/linear/linear.h"
#include "kernels/moe/moe.h"

namespace foresight {
namespace {

// Unbiased router score: sqrt(softplus(z)).
double Score(double z) {
  return std::sqrt(z > 20 ? z : std::log1p(std::exp(z)));
}

// One expert on one row; adds its output to sum [D].
void AddExpert(const KernelContext& ctx, const MoeArgs& args, const ExpertWeights& expert, const float* x,
               double weight, double* sum) {
  ArenaScope scope(*ctx.scratch);
  float* gate = ctx.scratch->Allocate<float>(args.intermediate);
  float* up = ctx.scratch->Allocate<float>(args.intermediate);
  float* down = ctx.scratch->Allocate<float>(args.dim);
  const LinearTarget in[] = {{.w = expert.w1, .out = gate}, {.w = expert.w3, .out = up}};
  LinearRef(ctx, {.rows = 1, .x = x, .targets = in});
  for (int i = 0; i < args.intermediate; ++i) {
    double g = gate[i];
    double u = up[i];
    if (args.swiglu_limit > 0) {
      g = std::min<double>(g, args.swiglu_limit);  // no lower bound
      u = std::clamp<double>(u, -args.swiglu_limit, args.swiglu_limit);
    }
    gate[i] = static_cast<float>(weight * (g / (1 + std::exp(-g)) * u));
    if (ctx.faithful()) gate[i] = RoundBf16(gate[i]);
  }
  const LinearTarget out[] = {{.w = expert.w2, .out = down}};
  LinearRef(ctx, {.rows = 1, .x = gate, .targets = out});
  for (int i = 0; i < args.dim; ++i) sum[i] += down[i];
}

}  // namespace

void RouterRef(const KernelContext& ctx, const RouterArgs& args) {
  ArenaScope scope(*ctx.scratch);
  const int k = args.experts_per_token;
  double* score = ctx.scratch->Allocate<double>(args.num_experts);
  double* biased = ctx.scratch->Allocate<double>(args.num_experts);
  int32_t* order = ctx.scratch->Allocate<int32_t>(args.num_experts);
  for (int64_t t = 0; t < args.rows; ++t) {
    for (int e = 0; e < args.num_experts; ++e) {
      score[e] = Score(args.logits[t * args.num_experts + e]);
      biased[e] = score[e] + (args.bias ? args.bias[e] : 0.0f);
    }
    int32_t* ids = args.ids + t * k;
    if (args.forced_ids != nullptr) {
      std::copy(args.forced_ids + t * k, args.forced_ids + (t + 1) * k, ids);
    } else if (args.tid2eid != nullptr) {
      for (int i = 0; i < k; ++i)
        ids[i] = static_cast<int32_t>(args.tid2eid[int64_t{args.tokens[t]} * k + i]);
    } else {
      std::iota(order, order + args.num_experts, 0);
      std::partial_sort(order, order + k, order + args.num_experts, [&](int32_t a, int32_t b) {
        return biased[a] != biased[b] ? biased[a] > biased[b] : a < b;
      });
      std::copy(order, order + k, ids);
    }
    double sum = 0;
    for (int i = 0; i < k; ++i) sum += score[ids[i]];
    for (int i = 0; i < k; ++i)
      args.weights[t * k + i] = static_cast<float>(score[ids[i]] / sum * args.scaling);
  }
}

void MoeRef(const KernelContext& ctx, const MoeArgs& args) {
  if (args.router != nullptr) RouterRef(ctx, *args.router);
  ArenaScope scope(*ctx.scratch);
  double* sum = ctx.scratch->Allocate<double>(args.dim);
  for (int64_t t = 0; t < args.rows; ++t) {
    const float* x = args.x + t * args.dim;
    std::fill(sum, sum + args.dim, 0.0);
    for (int k = 0; k < args.experts_per_token; ++k) {
      const int64_t slot = t * args.experts_per_token + k;
      AddExpert(ctx, args, args.experts[args.ids[slot]], x, args.weights[slot], sum);
    }
    if (args.HasShared()) AddExpert(ctx, args, args.shared, x, 1.0, sum);
    for (int i = 0; i < args.dim; ++i) {
      const float y = static_cast<float>(sum[i]);
      args.out[t * args.dim + i] = ctx.faithful() ? RoundBf16(y) : y;
    }
  }
}

}  // namespace foresight
