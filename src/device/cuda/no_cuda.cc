// Stands for cuda_device.cc in a build without CUDA.
#include "device/device.h"

namespace foresight {

Result<std::unique_ptr<Device>> OpenCudaDevice(int ordinal) {
  return Unimplemented("device cuda:{}: this program was built without CUDA (configure with nvcc at hand)",
                       ordinal);
}

}  // namespace foresight
