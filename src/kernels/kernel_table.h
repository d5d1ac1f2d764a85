// The backend seam: one typed function per operation of the model.
//
// The model calls entries of a table and knows nothing of devices. All memory that arguments point to is the
// context's device's; structs of weights and targets are the host's and point to the device's. Every entry
// has its definition in the ref table and a parity test that holds the others to it. An entry never fails on
// well-formed arguments (shapes are fixed when the model is made); violated contracts are programmer errors.
#pragma once

#include <string_view>

#include "base/status.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_inputs.h"
#include "kernels/draft_plan/draft_plan.h"
#include "kernels/hyper_connection/hyper_connection.h"
#include "kernels/indexer/indexer.h"
#include "kernels/linear/linear.h"
#include "kernels/moe/moe.h"
#include "kernels/norm_rope/norm_rope.h"
#include "kernels/sampling/logit_margins.h"
#include "kernels/sampling/place_tokens.h"
#include "kernels/sampling/sampling.h"
#include "kernels/sequential_head/sequential_head.h"
#include "kernels/taps/taps.h"

namespace foresight {

struct KernelTable {
  std::string_view name;         // "ref", "cpu-avx2", "cpu-avx512", "cuda", "cuda-sm80"
  std::string_view description;  // one line for the start-up report
  bool is_host = true;           // whose memory it works in: the machine's, or a device's
  int capability_max = 0;        // the newest compute capability it makes use of; 0: whatever there is
  // In faithful numerics heads' queries and outputs, the largest activations of a layer, are bf16 in memory:
  // linear's outputs that become attention's q, and attention's that become grouped_linear's x.
  bool packs_heads = false;

  void (*embed)(const KernelContext&, const EmbedArgs&) = nullptr;
  void (*hyper_connection_pre)(const KernelContext&, const HyperConnectionPreArgs&) = nullptr;
  void (*hyper_connection_post)(const KernelContext&, const HyperConnectionPostArgs&) = nullptr;
  void (*hyper_head)(const KernelContext&, const HyperHeadArgs&) = nullptr;
  void (*linear)(const KernelContext&, const LinearArgs&) = nullptr;
  void (*grouped_linear)(const KernelContext&, const GroupedLinearArgs&) = nullptr;
  void (*rms_norm)(const KernelContext&, const RmsNormArgs&) = nullptr;
  void (*rope_table)(const KernelContext&, const RopeTableArgs&) = nullptr;
  void (*attention_inputs)(const KernelContext&, const AttentionInputsArgs&) = nullptr;
  void (*store_keys)(const KernelContext&, const StoreKeysArgs&) = nullptr;
  void (*indexer)(const KernelContext&, const IndexerArgs&) = nullptr;
  void (*attention)(const KernelContext&, const AttentionArgs&) = nullptr;
  void (*router)(const KernelContext&, const RouterArgs&) = nullptr;
  void (*moe)(const KernelContext&, const MoeArgs&) = nullptr;
  void (*store_tap)(const KernelContext&, const StoreTapArgs&) = nullptr;
  void (*load_taps)(const KernelContext&, const LoadTapsArgs&) = nullptr;
  void (*sequential_head)(const KernelContext&, const SequentialHeadArgs&) = nullptr;
  void (*sample)(const KernelContext&, const SampleArgs&) = nullptr;
  void (*logit_margins)(const KernelContext&, const LogitMarginsArgs&) = nullptr;
  void (*place_tokens)(const KernelContext&, const PlaceTokensArgs&) = nullptr;
  void (*plan_drafts)(const KernelContext&, const PlanDraftsArgs&) = nullptr;
  void (*place_draws)(const KernelContext&, const PlaceDrawsArgs&) = nullptr;
};

// The definition: plain loops, float64 sums.
const KernelTable& RefKernels();

// The CPU tables. `isa` "avx512" (AVX-512 F/BW/DQ/VL/VBMI with BF16 and VNNI) or "avx2" (AVX2, FMA, F16C);
// kUnimplemented when this processor lacks it.
Result<const KernelTable*> CpuKernels(std::string_view isa);
// The best CPU table of this processor; kUnimplemented on one without AVX2.
Result<const KernelTable*> BestCpuKernels();
// For the NVIDIA GPUs from sm_80 on. Errors: kUnimplemented (a build without CUDA).
Result<const KernelTable*> CudaKernels();
// The same without what newer ones have of their own. Errors as CudaKernels.
Result<const KernelTable*> PortableCudaKernels();
// By name: "ref", "cpu" (the best), "cpu-avx2", "cpu-avx512", "cuda", "cuda-sm80".
Result<const KernelTable*> FindKernels(std::string_view name);

}  // namespace foresight
