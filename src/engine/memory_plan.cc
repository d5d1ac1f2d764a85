#include "engine/memory_plan.h"

#include <algorithm>

#include "base/units.h"

namespace foresight {
namespace {

// Code, tokenizer, thread stacks, and what the kernels keep for themselves.
constexpr int64_t kProgramBytes = 64 << 20;
// Of what is available, the part that an automatic context may fill.
constexpr double kAutomaticShare = 0.5;

int64_t RoundDownToBlocks(int64_t tokens) {
  return std::max(tokens / kBlockTokens, int64_t{1}) * kBlockTokens;
}

}  // namespace

std::string MemoryPlan::ToString() const {
  const std::string drafts = draft_bytes > 0 ? fmt::format(" + drafts {}", FormatBytes(draft_bytes)) : "";
  return fmt::format("weights {} + caches up to {} ({} states of up to {} tokens) + workspace {}{} = {}",
                     FormatBytes(weights_bytes), FormatBytes(cache.budget_bytes), cache.max_sequences,
                     FormatCount(cache.max_sequence_tokens), FormatBytes(workspace_bytes), drafts,
                     FormatBytes(total_bytes()));
}

int64_t CacheBytes(const CacheLayout& layout, int64_t tokens, int states, int full) {
  const int64_t blocks = layout.block_bytes == 0 ? 0 : (tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t table_bytes = blocks * int64_t{sizeof(std::byte*)};
  return states * (layout.fixed_bytes + table_bytes + 64) + full * blocks * layout.block_bytes;
}

Result<MemoryPlan> PlanMemory(const ModelConfig& config, const CacheLayout& layout,
                              const MemoryDemand& demand, int64_t available_bytes) {
  if (demand.context_tokens > config.max_position_embeddings) {
    return InvalidArgument("a context of {} tokens: this model allows {}", demand.context_tokens,
                           config.max_position_embeddings);
  }
  MemoryPlan plan{.weights_bytes = demand.weights_bytes,
                  .workspace_bytes = kProgramBytes + demand.step_bytes,
                  .draft_bytes = demand.draft_bytes,
                  .cache = {}};
  const int64_t left = available_bytes - plan.total_bytes();
  const int64_t for_caches = std::max<int64_t>(static_cast<int64_t>(left * kAutomaticShare), 0);
  const int states = demand.max_sequences + demand.kept_prefixes_max;
  int64_t context = demand.context_tokens;
  if (context == 0) {
    const int64_t limit = demand.cache_bytes_max > 0 ? demand.cache_bytes_max : for_caches;
    context = config.max_position_embeddings;
    while (context > kBlockTokens && CacheBytes(layout, context, states, 1) > limit)
      context = RoundDownToBlocks(context / 2);
  }
  plan.cache = {.budget_bytes = CacheBytes(layout, context, states, demand.max_sequences),
                .max_sequences = states,
                .max_sequence_tokens = context};
  if (demand.cache_bytes_max > 0) {
    plan.cache.budget_bytes = std::min(plan.cache.budget_bytes, demand.cache_bytes_max);
  } else {
    plan.cache.budget_bytes =
        std::clamp(for_caches, CacheBytes(layout, context, states, 1), plan.cache.budget_bytes);
  }
  if (plan.total_bytes() > available_bytes) {
    return ResourceExhausted(
        "this model does not fit: {}; available are {}. A shorter context, fewer sequences or a smaller "
        "model "
        "would.",
        plan.ToString(), FormatBytes(std::max<int64_t>(available_bytes, 0)));
  }
  return plan;
}

}  // namespace foresight
