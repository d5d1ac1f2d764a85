// Rotary frequencies per layer kind (model spec 1.3).
#pragma once

#include <vector>

#include "weights/config.h"

namespace foresight {

// Frequencies [qk_rope_head_dim / 2] of SWA layers and draft blocks: plain RoPE with rope_theta.
std::vector<float> WindowRopeFrequencies(const ModelConfig& config);
// Of CSA and HCA layers, window branch included: compress_rope_theta with YaRN, magnitude 1.
std::vector<float> CompressedRopeFrequencies(const ModelConfig& config);

}  // namespace foresight
