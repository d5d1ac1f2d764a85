#include "model/placement.h"

#include <algorithm>
#include <utility>

#include "base/row_tiers.h"
#include "model/costs.h"

namespace foresight {
namespace {

constexpr int64_t kKernelScratchBytes = int64_t{512} << 20;

}  // namespace

CacheLayout LayoutOf(const ModelConfig& config, const ModelOptions& options) {
  return MakeCacheLayout(
      config, options.numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32,
      options.rollback_tokens);
}

PlacementBytes MemoryOf(const ModelConfig& config, const ModelOptions& options) {
  return {.steps =
              StepMemoryBytes(config, LayoutOf(config, options), options.max_step_rows) + kKernelScratchBytes,
          // A first group of draft blocks may be padded.
          .drafts = DraftMemoryBytes(
              config, std::max(options.max_step_rows, options.max_draft_rows) + kReplayedRowsMax)};
}

Result<Placement> PlaceModel(const ModelWeights& weights, Device& device, ModelOptions& options,
                             std::shared_ptr<const DeviceWeights> placed) {
  const PlacementBytes bytes = MemoryOf(weights.config, options);
  Placement placement{.weights = std::move(placed), .step_memory = {}, .draft_memory = {}};
  if (placement.weights == nullptr) {
    ASSIGN_OR_RETURN(DeviceWeights uploaded, UploadWeights(weights, device));
    placement.weights = std::make_shared<const DeviceWeights>(std::move(uploaded));
  }
  ASSIGN_OR_RETURN(placement.step_memory, device.Allocate(bytes.steps, "steps"));
  ASSIGN_OR_RETURN(placement.draft_memory, device.Allocate(bytes.drafts, "drafts"));
  const auto span = [](const DeviceMemory& memory) {
    return std::span(memory.data(), static_cast<size_t>(memory.bytes()));
  };
  options.device = &device;
  options.step_memory = span(placement.step_memory);
  options.draft_memory = span(placement.draft_memory);
  return placement;
}

}  // namespace foresight
