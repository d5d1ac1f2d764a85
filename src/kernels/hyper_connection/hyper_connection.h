// Manifold-constrained hyper-connections: m residual streams instead of one (model spec 2.2, 2.3, 2.10).
#pragma once

#include <span>

#include "kernels/kernel_context.h"
#include "tensor/tensor.h"

namespace foresight {

// All streams of a row start as the token's embedding row. A row that has a pointer in `placed` has the token
// that lies there, which a draft step has drawn.
//
// Shapes   tokens [T] i32 in [0, V) · placed [T], null where there is none; or null: there are none ·
//          placed_in [T] i32 out, those tokens alone; may be tokens · embed [V, D] bf16 · streams [T, m, D]
//          f32
struct EmbedArgs {
  int rows = 0;
  int m = 0;
  const int32_t* tokens = nullptr;
  const int32_t* const* placed = nullptr;
  int32_t* placed_in = nullptr;
  MatrixView embed;
  float* streams = nullptr;
};

// A sub-layer's output and how it is mixed back: x [T, D] f32 · post [T, m] f32 · comb [T, m, m] f32.
struct SublayerOutput {
  const float* x = nullptr;
  const float* post = nullptr;
  const float* comb = nullptr;
};

// Mixes a sub-layer's output back: streams[k] = post_k * x + sum_j comb[j][k] * streams[j], in place.
//
// Shapes   streams [T, m, D] f32 in and out
// Numerics float32 sums; faithful: bf16 result.
// Source   model spec 2.3 hc_post
struct HyperConnectionPostArgs {
  int rows = 0;
  int m = 0;
  int dim = 0;
  SublayerOutput back;
  float* streams = nullptr;
};

// Where what is tapped of the streams goes, as in StoreTapArgs; nowhere without sequences.
struct TapTarget {
  std::span<const SequenceRows> sequences;
  int64_t offset = 0;
};

// Mixes the streams into a sub-layer's input, normalises it, and computes how its output is mixed back. What
// the sub-layer before has put out is mixed back first, if its x isn't null: its post and comb may lie where
// those of this call go. Then `tap` is stored as store_tap does it.
//
// Shapes   streams [T, m, D] f32 · fn [m*(2+m), m*D] f32 · base [m*(2+m)] · scale [3] · norm [D]
//          x [T, D] f32 out: RMSNorm(sum_j pre_j streams_j) · post [T, m] f32 out · comb [T, m, m] f32 out,
//          index [source stream][destination stream]
// Numerics float32 throughout (at least blocked accumulation over m*D); faithful: bf16 after the mixing and
// after the
//          norm.
// Source   model spec 2.3 hc_pre and sinkhorn, 2.1 RMSNorm
struct HyperConnectionPreArgs {
  int rows = 0;
  int m = 0;
  int dim = 0;
  float* streams = nullptr;
  SublayerOutput back;
  TapTarget tap;
  MatrixView fn;
  VectorView base;
  VectorView scale;
  VectorView norm;
  int sinkhorn_iters = 0;
  float hc_eps = 0;
  float norm_eps = 0;
  float* x = nullptr;
  float* post = nullptr;
  float* comb = nullptr;
};

// Collapses the streams of selected rows before the LM head. What the last sub-layer has put out is mixed
// back first, if its x isn't null; then `tap` is stored, as hyper_connection_pre does it. With either,
// row_ids has each of the streams' rows once.
//
// Shapes   streams [*, m, D] f32, in and out with `back` · row_ids [R] i32: which rows · fn [m, m*D] f32 ·
// base [m] · scale [1] · norm [D]
//          hidden [R, D] f32 out, before the norm (null when nobody asks) · out [R, D] f32 out:
//          RMSNorm(hidden)
// Numerics faithful: bf16 after the mixing and after the norm.
// Source   model spec 2.10
struct HyperHeadArgs {
  int rows = 0;  // R
  int m = 0;
  int dim = 0;
  float* streams = nullptr;
  SublayerOutput back;
  TapTarget tap;
  const int32_t* row_ids = nullptr;
  MatrixView fn;
  VectorView base;
  VectorView scale;
  VectorView norm;
  float hc_eps = 0;
  float norm_eps = 0;
  float* hidden = nullptr;
  float* out = nullptr;
};

void EmbedRef(const KernelContext& ctx, const EmbedArgs& args);
void HyperConnectionPreRef(const KernelContext& ctx, const HyperConnectionPreArgs& args);
void HyperConnectionPostRef(const KernelContext& ctx, const HyperConnectionPostArgs& args);
void HyperHeadRef(const KernelContext& ctx, const HyperHeadArgs& args);

}  // namespace foresight
