// The official tensor table (model spec 3.1, dspark.md 6.1) in one place: which tensors a config asks for,
// with names, dtypes and shapes, and where each belongs in ModelWeights. The loader, the synthetic models and
// `inspect` all walk this list.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "weights/model_weights.h"

namespace foresight {

enum class DraftHead { kNone, kMtp1, kDSpark };

std::string_view DraftHeadName(DraftHead head);  // "none", "MTP-1", "DSpark"

// What config.json leaves to the tensors.
struct LayoutOptions {
  DraftHead draft = DraftHead::kNone;
  int num_draft_blocks = 0;  // 1 for MTP-1; DSpark's stages
  // Of DSpark. A head without Markov part may lack it; with one, every release has it.
  bool has_confidence = true;
  // kI8 (MXFP4) or kF8E4M3, of the routed experts of each block: main layers, then draft blocks.
  std::vector<DType> expert_dtypes;
};

// The draft head that a config describes, all blocks with experts of one dtype.
LayoutOptions LayoutFromConfig(const ModelConfig& config, DType expert_dtype = DType::kI8);

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // as stored: packed MXFP4 has half the columns

  uint64_t bytes() const;
};

// How a synthetic model fills a weight; of no concern to the loader.
enum class WeightRole {
  kLinear,
  kEmbedding,
  kHead,
  kNorm,
  kSink,
  kApe,
  kHcFn,
  kHcBase,
  kHcScale,
  kRoutingBias,
  kRoutingTable,
};

// One weight of the model: its stored tensors and the view to set.
struct WeightSlot {
  WeightRole role = WeightRole::kLinear;
  TensorSpec tensor;
  std::optional<TensorSpec> scale;
  std::variant<MatrixView*, VectorView*, const int64_t**> target;

  uint64_t bytes() const { return tensor.bytes() + (scale ? scale->bytes() : 0); }
  // What the view points at; null before Bind, and scales also where there are none.
  const std::byte* data() const;
  const std::byte* scales() const;
  // Points the target's view at the stored bytes (`scales` null where there are none).
  void Bind(const std::byte* data, const std::byte* scales) const;
};

// Gives `weights` the structure of the config (layers, experts, draft blocks) and returns a slot for every
// weight: the globals, the layers, the draft blocks. Weights that have the structure already keep their data.
// Slots point into `weights` as it stands: use them before moving it.
std::vector<WeightSlot> LayOutWeights(const ModelConfig& config, const LayoutOptions& options,
                                      ModelWeights* weights);

// The slots of loaded or synthetic weights.
std::vector<WeightSlot> ListWeights(ModelWeights* weights);

}  // namespace foresight
