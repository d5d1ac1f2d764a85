// How much memory a model will take, before it is taken.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "kv_cache/cache_layout.h"
#include "kv_cache/sequence_state.h"
#include "weights/config.h"

namespace foresight {

struct MemoryDemand {
  int64_t weights_bytes = 0;    // that are not in memory yet
  int64_t context_tokens = 0;   // of each sequence; 0: as many as the model allows and memory holds
  int64_t cache_bytes_max = 0;  // of all sequences; 0: full contexts for all, or what memory holds of them
  int max_sequences = 1;        // computed at a time
  int kept_prefixes_max = 0;    // states beside them
  int64_t step_bytes = 0;       // activations of the largest step, and the kernels' own
  int64_t draft_bytes = 0;      // what drafts leave behind
};

struct MemoryPlan {
  int64_t weights_bytes = 0;
  int64_t workspace_bytes = 0;  // of steps, and the program's own
  int64_t draft_bytes = 0;
  KvCacheOptions cache;  // pages follow use; never less than one full context

  int64_t total_bytes() const { return weights_bytes + workspace_bytes + draft_bytes + cache.budget_bytes; }
  std::string ToString() const;
};

// Bytes of caches for `states` sequences of up to `tokens`, with blocks for `full` of them at that length.
int64_t CacheBytes(const CacheLayout& layout, int64_t tokens, int states, int full);

// Fits the demand into `available_bytes`. Errors: kInvalidArgument (a context longer than the model allows),
// kResourceExhausted (it doesn't fit; the message has the figures).
Result<MemoryPlan> PlanMemory(const ModelConfig& config, const CacheLayout& layout,
                              const MemoryDemand& demand, int64_t available_bytes);

}  // namespace foresight
