#include "kernels/cuda/cuda_kernels.h"
#include "kernels/kernel_table.h"

namespace foresight {
namespace {

// What the entries launch depends on the device's compute capability as far as the table goes along
// (Device::RestrictTo).
constexpr KernelTable Table(std::string_view name, std::string_view description, int capability_max) {
  return {
      .name = name,
      .description = description,
      .is_host = false,
      .capability_max = capability_max,
      .packs_heads = true,
      .embed = cuda::Embed,
      .hyper_connection_pre = cuda::HyperConnectionPre,
      .hyper_connection_post = cuda::HyperConnectionPost,
      .hyper_head = cuda::HyperHead,
      .linear = cuda::Linear,
      .grouped_linear = cuda::GroupedLinear,
      .rms_norm = cuda::RmsNorm,
      .rope_table = cuda::RopeTable,
      .attention_inputs = cuda::AttentionInputs,
      .store_keys = cuda::StoreKeys,
      .indexer = cuda::Indexer,
      .attention = cuda::Attention,
      .router = cuda::Router,
      .moe = cuda::Moe,
      .store_tap = cuda::StoreTap,
      .load_taps = cuda::LoadTaps,
      .sequential_head = cuda::SequentialHead,
      .sample = cuda::Sample,
      .logit_margins = cuda::LogitMargins,
      .place_tokens = cuda::PlaceTokens,
      .plan_drafts = cuda::PlanDrafts,
      .place_draws = cuda::PlaceDraws,
  };
}

}  // namespace

Result<const KernelTable*> CudaKernels() {
  static constexpr KernelTable kTable =
      Table("cuda", "CUDA for NVIDIA GPUs from sm_80 on, with what sm_90 adds where it is there", 0);
  return &kTable;
}

Result<const KernelTable*> PortableCudaKernels() {
  static constexpr KernelTable kTable = Table("cuda-sm80", "CUDA for NVIDIA GPUs from sm_80 on", 80);
  return &kTable;
}

}  // namespace foresight
