#include "weights/upload.h"

#include "weights/layout.h"

namespace foresight {
namespace {

// Kernels read rows with loads of 16 bytes, bulk copies want 128.
constexpr int64_t kAlignment = 256;

int64_t Aligned(uint64_t bytes) {
  return (static_cast<int64_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Result<DeviceWeights> UploadWeights(const ModelWeights& weights, Device& device) {
  DeviceWeights result{.weights = weights, .memory = {}};
  const std::vector<WeightSlot> slots = ListWeights(&result.weights);
  int64_t bytes = 0;
  for (const WeightSlot& slot : slots) {
    bytes += Aligned(slot.tensor.bytes()) + (slot.scale ? Aligned(slot.scale->bytes()) : 0);
  }
  ASSIGN_OR_RETURN(result.memory, device.Allocate(bytes, "weights"));
  std::byte* next = result.memory.data();
  const auto take = [&](uint64_t size) {
    std::byte* const to = next;
    next += Aligned(size);
    return to;
  };
  for (const WeightSlot& slot : slots) {
    const uint64_t size = slot.tensor.bytes();
    std::byte* const data = take(size);
    device.UploadWeight(data, slot.data(), static_cast<int64_t>(size), slot.tensor.dtype);
    std::byte* scales = nullptr;
    if (slot.scale) {
      scales = take(slot.scale->bytes());
      device.Upload(scales, slot.scales(), static_cast<int64_t>(slot.scale->bytes()));
    }
    slot.Bind(data, scales);
  }
  RETURN_IF_ERROR(device.Synchronize());
  return result;
}

}  // namespace foresight
