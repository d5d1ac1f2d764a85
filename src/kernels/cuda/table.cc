#include "kernels/cuda/cuda_kernels.h"

namespace foresight {

Result<const KernelTable*> CudaKernels() {
  static constexpr KernelTable kTable = {
      .name = "cuda",
      .description = "CUDA for NVIDIA GPUs from sm_80 on",
      .is_host = false,
      .embed = cuda::Embed,
      .hyper_connection_pre = cuda::HyperConnectionPre,
      .hyper_connection_post = cuda::HyperConnectionPost,
      .hyper_head = cuda::HyperHead,
      .linear = cuda::Linear,
      .grouped_linear = cuda::GroupedLinear,
      .rms_norm = cuda::RmsNorm,
      .rope_table = cuda::RopeTable,
      .query = cuda::Query,
      .key = cuda::Key,
      .store_keys = cuda::StoreKeys,
      .compressor = cuda::Compressor,
      .indexer = cuda::Indexer,
      .attention = cuda::Attention,
      .router = cuda::Router,
      .moe = cuda::Moe,
      .store_tap = cuda::StoreTap,
      .load_taps = cuda::LoadTaps,
      .sequential_head = cuda::SequentialHead,
  };
  return &kTable;
}

}  // namespace foresight
