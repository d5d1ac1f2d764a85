// What a model needs on a device of its own: its weights, and memory for steps.
#pragma once

#include <memory>

#include "base/status.h"
#include "device/device.h"
#include "kv_cache/cache_layout.h"
#include "model/model.h"
#include "weights/upload.h"

namespace foresight {

// Owns it. Outlives the model.
struct Placement {
  std::shared_ptr<const DeviceWeights> weights;  // several models may run on them
  DeviceMemory step_memory;
  DeviceMemory draft_memory;
};

// Bytes on a device.
struct PlacementBytes {
  int64_t steps = 0;   // activations, and what kernels keep beside them: scores of the indexer, operands
  int64_t drafts = 0;  // what drafts leave behind
};
PlacementBytes MemoryOf(const ModelConfig& config, const ModelOptions& options);

// The cache layout of a model with these options.
CacheLayout LayoutOf(const ModelConfig& config, const ModelOptions& options);

// Uploads `weights`, unless a copy of them lies on the device already (`placed`), takes the memory of
// MemoryOf, and enters the device into `options`. Errors: kResourceExhausted (the message has
// the figures), kDeviceError.
Result<Placement> PlaceModel(const ModelWeights& weights, Device& device, ModelOptions& options,
                             std::shared_ptr<const DeviceWeights> placed = nullptr);

}  // namespace foresight
