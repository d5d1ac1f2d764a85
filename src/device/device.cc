#include "device/device.h"

#include <utility>

namespace foresight {

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) device_->Free(data_, bytes_);
}

void Device::Replay(uint64_t, const std::function<void()>& launches) {
  launches();
}

Status CheckCudaCapability(std::string_view name, int capability) {
  constexpr int kLeast = 80;
  if (capability >= kLeast) return Status();
  return Unimplemented(
      "{} is sm_{}: kernels are made for sm_{} (A100, RTX 30) and newer; --device cpu runs anywhere", name,
      capability, kLeast);
}

}  // namespace foresight
