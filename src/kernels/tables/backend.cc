#include "kernels/backend.h"

#include <charconv>

namespace foresight {
namespace {

Result<int> Ordinal(std::string_view device) {
  if (device == "cuda") return 0;
  const std::string_view digits =
      device.substr(std::min<size_t>(device.size(), std::string_view("cuda:").size()));
  int ordinal = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
  if (!device.starts_with("cuda:") || error != std::errc() || end != digits.data() + digits.size()) {
    return InvalidArgument("device: want cpu, cuda or cuda:N, got \"{}\"", device);
  }
  return ordinal;
}

}  // namespace

Result<Backend> OpenBackend(std::string_view device, std::string_view table) {
  Backend backend;
  if (device == "cpu") {
    ASSIGN_OR_RETURN(backend.kernels, FindKernels(table == "auto" ? "cpu" : table));
  } else {
    ASSIGN_OR_RETURN(const int ordinal, Ordinal(device));
    ASSIGN_OR_RETURN(backend.device, OpenCudaDevice(ordinal));
    ASSIGN_OR_RETURN(backend.kernels, FindKernels(table == "auto" ? "cuda" : table));
  }
  if (backend.kernels->is_host != (backend.device == nullptr)) {
    return InvalidArgument("the kernels \"{}\" don't run on the device \"{}\"", table, device);
  }
  if (backend.kernels->capability_max > 0) backend.device->RestrictTo(backend.kernels->capability_max);
  return backend;
}

}  // namespace foresight
