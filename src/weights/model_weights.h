// The model's weights as typed views, in the order in which a token meets them. Names in comments are the
// official tensor names (model spec 3.1); shapes use the letters of docs/shapes.md. All views point into a
// Checkpoint (or a synthetic arena), which outlives them.
#pragma once

#include <optional>
#include <vector>

#include "kernels/moe/moe.h"
#include "kernels/sequential_head/sequential_head.h"
#include "tensor/tensor.h"
#include "weights/config.h"

namespace foresight {

// Manifold-constrained hyper-connection of one sub-layer (model spec 2.3).
struct HyperConnectionWeights {
  MatrixView fn;     // hc_*_fn    F32 [m*(2+m), m*D]
  VectorView base;   // hc_*_base  F32 [m*(2+m)]
  VectorView scale;  // hc_*_scale F32 [3]
};

// Collapses the streams before the head (model spec 2.10).
struct HyperHeadWeights {
  MatrixView fn;     // hc_head_fn    F32 [m, m*D]
  VectorView base;   // hc_head_base  F32 [m]
  VectorView scale;  // hc_head_scale F32 [1]
};

// Makes compressed entries (model spec 2.5); n is head_dim or index_head_dim, c = 2 when r = 4, else 1.
struct CompressorWeights {
  MatrixView wkv;    // compressor.wkv.weight    BF16 [c*n, D]
  MatrixView wgate;  // compressor.wgate.weight  BF16 [c*n, D]
  MatrixView ape;    // compressor.ape           F32  [r, c*n]
  VectorView norm;   // compressor.norm.weight   BF16 [n]
};

struct IndexerWeights {     // CSA only (model spec 2.6)
  MatrixView wq_b;          // indexer.wq_b          FP8  [Hi*Di, R]
  MatrixView weights_proj;  // indexer.weights_proj  BF16 [Hi, D]
  CompressorWeights compressor;
};

struct AttentionWeights {                       // model spec 2.4
  MatrixView wq_a;                              // FP8  [R, D]
  VectorView q_norm;                            // BF16 [R]
  MatrixView wq_b;                              // FP8  [H*d, R]
  MatrixView wkv;                               // FP8  [d, D]
  VectorView kv_norm;                           // BF16 [d]
  VectorView attn_sink;                         // F32  [H]
  MatrixView wo_a;                              // FP8  [g*G, H*d/g], block diagonal
  MatrixView wo_b;                              // FP8  [D, g*G]
  std::optional<CompressorWeights> compressor;  // CSA and HCA
  std::optional<IndexerWeights> indexer;        // CSA
};

struct MoeWeights {                    // model spec 2.9
  MatrixView gate;                     // gate.weight BF16 [E, D]
  VectorView gate_bias;                // gate.bias F32 [E]; empty in hash layers
  const int64_t* tid2eid = nullptr;    // gate.tid2eid I64 [V, K]; hash layers only
  std::vector<ExpertWeights> experts;  // [E]
  ExpertWeights shared;                // FP8
};

struct BlockWeights {
  LayerKind kind = LayerKind::kSwa;
  HyperConnectionWeights hc_attn;
  VectorView attn_norm;  // BF16 [D]
  AttentionWeights attn;
  HyperConnectionWeights hc_ffn;
  VectorView ffn_norm;  // BF16 [D]
  MoeWeights ffn;
};

struct MtpWeights {   // the classic MTP-1 block, mtp.0 (model spec 2.11)
  MatrixView e_proj;  // FP8 [D, D]
  MatrixView h_proj;  // FP8 [D, D]
  VectorView enorm;   // BF16 [D]
  VectorView hnorm;   // BF16 [D]
  BlockWeights block;
  HyperHeadWeights hc_head;
  VectorView norm;  // BF16 [D]
};

struct DSparkWeights {   // the refresh releases' draft head, mtp.0 .. mtp.S-1 (dspark.md 6.1)
  MatrixView main_proj;  // mtp.0.main_proj FP8 [D, num_taps*D]
  VectorView main_norm;  // mtp.0.main_norm.weight BF16 [D]
  std::vector<BlockWeights> stages;
  HyperHeadWeights hc_head;  // of the last stage, like all below
  VectorView norm;           // BF16 [D]
  SequentialHeadWeights head;
};

struct ModelWeights {
  ModelConfig config;
  MatrixView embed;  // embed.weight BF16 [V, D]
  std::vector<BlockWeights> layers;
  HyperHeadWeights hc_head;
  VectorView norm;                      // norm.weight BF16 [D]
  MatrixView head;                      // head.weight BF16 [V, D]
  std::optional<MtpWeights> mtp;        // recognised by mtp.0.e_proj
  std::optional<DSparkWeights> dspark;  // recognised by mtp.0.main_proj
};

}  // namespace foresight
