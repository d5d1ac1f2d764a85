// The CUDA implementations of the table's entries. `foresight::cuda` runs on every NVIDIA GPU from sm_80 on.
//
// All pointers in the arguments are device memory, `sequences.data()`, `tokens`, `positions`, `row_ids` and
// `frequencies` included; but for structs of weights and `targets`, which are read on the host and point to
// device memory. Calls return at once: everything happens in the order of the device's stream.
#pragma once

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

namespace foresight::cuda {

void Embed(const KernelContext& ctx, const EmbedArgs& args);
void HyperConnectionPre(const KernelContext& ctx, const HyperConnectionPreArgs& args);
void HyperConnectionPost(const KernelContext& ctx, const HyperConnectionPostArgs& args);
void HyperHead(const KernelContext& ctx, const HyperHeadArgs& args);
void Linear(const KernelContext& ctx, const LinearArgs& args);
void GroupedLinear(const KernelContext& ctx, const GroupedLinearArgs& args);
// Linear with FP8 weights whose sums go over K in one run, as those of routed experts do; Linear's are made
// of parts.
void LinearInOneSum(const KernelContext& ctx, const LinearArgs& args);
void RmsNorm(const KernelContext& ctx, const RmsNormArgs& args);
void RopeTable(const KernelContext& ctx, const RopeTableArgs& args);
void AttentionInputs(const KernelContext& ctx, const AttentionInputsArgs& args);
void StoreKeys(const KernelContext& ctx, const StoreKeysArgs& args);
void Indexer(const KernelContext& ctx, const IndexerArgs& args);
void Attention(const KernelContext& ctx, const AttentionArgs& args);
void Router(const KernelContext& ctx, const RouterArgs& args);
void Moe(const KernelContext& ctx, const MoeArgs& args);
void StoreTap(const KernelContext& ctx, const StoreTapArgs& args);
void LoadTaps(const KernelContext& ctx, const LoadTapsArgs& args);
void SequentialHead(const KernelContext& ctx, const SequentialHeadArgs& args);
void Sample(const KernelContext& ctx, const SampleArgs& args);
void LogitMargins(const KernelContext& ctx, const LogitMarginsArgs& args);
void PlaceTokens(const KernelContext& ctx, const PlaceTokensArgs& args);
void PlanDrafts(const KernelContext& ctx, const PlanDraftsArgs& args);
void PlaceDraws(const KernelContext& ctx, const PlaceDrawsArgs& args);

}  // namespace foresight::cuda
