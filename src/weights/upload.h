// Weights in the memory of a device.
#pragma once

#include "base/status.h"
#include "device/device.h"
#include "weights/model_weights.h"

namespace foresight {

struct DeviceWeights {
  ModelWeights weights;  // views of `memory`; the vectors of experts themselves are the host's
  DeviceMemory memory;
};

// A copy of `weights`, in stored precision. Errors: kResourceExhausted (the message has the figures),
// kDeviceError.
Result<DeviceWeights> UploadWeights(const ModelWeights& weights, Device& device);

}  // namespace foresight
