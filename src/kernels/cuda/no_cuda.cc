// Stands for the CUDA tables in a build without CUDA.
#include "kernels/indexer/indexer_parts.h"
#include "kernels/kernel_table.h"

namespace foresight {

Result<const KernelTable*> CudaKernels() {
  return Unimplemented("kernels cuda: this program was built without CUDA (configure with nvcc at hand)");
}

Result<const KernelTable*> PortableCudaKernels() {
  return CudaKernels();
}

Result<IndexerParts> CudaIndexerParts() {
  return CudaKernels().error();
}

}  // namespace foresight
