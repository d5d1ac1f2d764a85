#include "model/placement.h"

#include <algorithm>
#include <utility>

#include "model/costs.h"

namespace foresight {

CacheLayout LayoutOf(const ModelConfig& config, const ModelOptions& options) {
  return MakeCacheLayout(
      config, options.numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32,
      options.rollback_tokens);
}

Result<Placement> PlaceModel(const ModelWeights& weights, Device& device, ModelOptions& options,
                             std::shared_ptr<const DeviceWeights> placed) {
  const ModelConfig& config = weights.config;
  const int64_t step_bytes =
      StepMemoryBytes(config, LayoutOf(config, options), options.max_step_rows) + kDeviceScratchBytes;
  Placement placement{.weights = std::move(placed), .step_memory = {}, .draft_memory = {}};
  if (placement.weights == nullptr) {
    ASSIGN_OR_RETURN(DeviceWeights uploaded, UploadWeights(weights, device));
    placement.weights = std::make_shared<const DeviceWeights>(std::move(uploaded));
  }
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
