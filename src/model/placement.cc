#include "model/placement.h"

#include <algorithm>

#include "model/costs.h"

namespace foresight {

CacheLayout LayoutOf(const ModelConfig& config, const ModelOptions& options) {
  return MakeCacheLayout(
      config, options.numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32,
      options.rollback_tokens);
}

Result<Placement> PlaceModel(const ModelWeights& weights, Device& device, ModelOptions& options) {
  const ModelConfig& config = weights.config;
  const int64_t step_bytes =
      StepMemoryBytes(config, LayoutOf(config, options), options.max_step_rows) + kDeviceScratchBytes;
  Placement placement;
  ASSIGN_OR_RETURN(placement.weights, UploadWeights(weights, device));
  ASSIGN_OR_RETURN(placement.step_memory, device.Allocate(step_bytes, "steps"));
  ASSIGN_OR_RETURN(
      placement.draft_memory,
      device.Allocate(DraftMemoryBytes(config, std::max(options.max_step_rows, options.max_draft_rows)),
                      "drafts"));
  options.device = &device;
  options.step_memory = {placement.step_memory.data(), static_cast<size_t>(step_bytes)};
  options.draft_memory = {placement.draft_memory.data(), static_cast<size_t>(placement.draft_memory.bytes())};
  return placement;
}

}  // namespace foresight
