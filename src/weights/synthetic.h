// Models with random weights in the official formats, made in memory: real layer shapes without the real 160
// GB, and small ones for every module's tests.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "weights/config.h"
#include "weights/loader.h"

namespace foresight {

struct SyntheticOptions {
  uint64_t seed = 1;
  DType expert_dtype = DType::kI8;  // MXFP4; kF8E4M3 is the layout of the Base checkpoints
  int num_threads = 0;              // 0: one for each core
};

// Random weights for any valid config. Equal for equal seeds, whatever the number of threads. Activations
// stay near 1 through the layers, logits have a standard deviation of about 3. Nothing is left at the usual
// defaults, which hide bugs (model spec 8): sinks normal(0,1), ape normal(0,.5), mHC base normal(0,1), norm
// weights 1+normal(0,.1), routing bias normal(0,.3); scales differ from block to block.
// The draft head is DSpark when the config has one, else MTP-1 when it has one draft layer, else none.
LoadedModel MakeSyntheticModel(const ModelConfig& config, const SyntheticOptions& options = {});

// The released shapes (model spec 1.1) with the first `num_layers` layers, no draft head, and `num_experts`
// routed experts (0: all). num_layers is 1..43 for Flash and 1..61 for Pro.
ModelConfig FlashConfig(int num_layers = 43, int num_experts = 0);
ModelConfig ProConfig(int num_layers = 61, int num_experts = 0);

// The small test configs of model spec 8: tiny-A with every layer kind and MTP-1; tiny-B with the head_dim of
// the release.
ModelConfig TinyAConfig();
ModelConfig TinyBConfig();

// Gives a config a DSpark head in place of the draft head that it has: the released numbers (block of 5, taps
// on the last three layers), as far as the model has them.
void AddDSparkHead(ModelConfig* config, int num_stages = 3);

// The config for "flash:6", "pro:4", "tiny-a", "tiny-b" (the argument of --synthetic), with "+dspark" or
// "+dspark:STAGES" behind it for a DSpark head, "+mtp" for MTP-1. num_experts 0 keeps all. Errors:
// kInvalidArgument, with what is allowed.
Result<ModelConfig> ParseSyntheticSpec(std::string_view spec, int num_experts = 0);

}  // namespace foresight
