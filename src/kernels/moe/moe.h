// Mixture of experts: router and experts (model spec 2.9).
#pragma once

#include <span>

#include "kernels/kernel_context.h"
#include "tensor/tensor.h"

namespace foresight {

// score_e = sqrt(softplus(logits_e)); the K experts of a row are forced_ids, or the hash table's row of its
// token, or the top K of score + bias (equal: the lower id), in order of selection; weight_k = score_k / sum
// * scaling.
//
// Shapes   logits [T, E] f32 (gate product) · bias [E] f32, empty in hash layers · tid2eid [V, K] i64, null
// otherwise
//          tokens [T] i32 · forced_ids [T, K] i32 or null · ids [T, K] i32 out · weights [T, K] f32 out
// Numerics float32 throughout.
struct RouterArgs {
  int rows = 0;
  int num_experts = 0;
  int experts_per_token = 0;
  float scaling = 1;
  const float* logits = nullptr;
  VectorView bias;
  const int64_t* tid2eid = nullptr;
  const int32_t* tokens = nullptr;
  const int32_t* forced_ids = nullptr;
  int32_t* ids = nullptr;
  float* weights = nullptr;
};

// One expert, routed (MXFP4 or FP8) or shared (FP8).
struct ExpertWeights {
  MatrixView w1;  // gate [I, D]
  MatrixView w3;  // up   [I, D]
  MatrixView w2;  // down [D, I]
};

// out[t] = shared(x[t]) + sum_k expert_{ids[t,k]}(x[t]), with
// expert(x) = w2 (weight_k * silu(min(w1 x, limit)) * clamp(w3 x, -limit, limit)); the shared expert has
// weight 1. limit 0 means no clamp; a shared expert without data is none.
//
// Shapes   x [T, D] f32 · ids, weights [T, K] · out [T, D] f32
// Order    the experts' outputs are added in the order of the slots k, the shared expert's last (row purity).
// Numerics faithful: x and the activation through act_quant(128) before FP8/MXFP4 products, bf16 products and
//          activation, float32 sum over experts, bf16 result.
struct MoeArgs {
  int rows = 0;
  int dim = 0;           // D
  int intermediate = 0;  // I
  int experts_per_token = 0;
  float swiglu_limit = 0;
  std::span<const ExpertWeights> experts;  // [E], all of expert_dtype and one shape
  DType expert_dtype = DType::kI8;
  ExpertWeights shared;
  const float* x = nullptr;
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  const RouterArgs* router = nullptr;  // what makes ids and weights first; null: they are there
  float* out = nullptr;

  bool HasShared() const { return shared.w1.data != nullptr; }
};

void RouterRef(const KernelContext& ctx, const RouterArgs& args);
void MoeRef(const KernelContext& ctx, const MoeArgs& args);

}  // namespace foresight
