// Stands for cuda/table.cc in a build without CUDA.
#include "kernels/kernel_table.h"

namespace foresight {

Result<const KernelTable*> CudaKernels() {
  return Unimplemented("kernels cuda: this program was built without CUDA (configure with nvcc at hand)");
}

Result<const KernelTable*> PortableCudaKernels() {
  return CudaKernels();
}

}  // namespace foresight
