// A model that is ready to run: its weights, tokenizer, kernels, threads and caches, each with one owner here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/progress.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/machine.h"
#include "engine/memory_plan.h"
#include "kernels/kernel_table.h"
#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"
#include "weights/loader.h"
#include "weights/model_files.h"

namespace foresight {

struct EngineOptions {
  int num_threads = 0;        // 0: the processors of the affinity mask
  std::string table = "cpu";  // FindKernels
  Numerics numerics = Numerics::kFaithful;
  int64_t context_tokens = 0;   // of each sequence; 0: as many as the model allows and memory holds
  int64_t cache_bytes_max = 0;  // of all sequences; 0: full contexts
  int max_sequences = 2;        // states at a time: a conversation keeps one beside the one it extends
  int step_rows_max = 512;      // rows of one step: the length of a prefill chunk
  ValueChecks checks = ValueChecks::kQuick;
  ProgressSink* progress = nullptr;  // borrowed for the load; may be null
};

// Used by one thread at a time.
class Engine {
 public:
  // Errors: what LoadModel, Tokenizer::Load, FindKernels, PlanMemory and KvCache::Create say; kNotFound when
  // `files` is empty. A model without tokenizer.json runs on token ids alone.
  static Result<std::unique_ptr<Engine>> Load(const ModelFiles& files, const EngineOptions& options);
  // Random weights of a config, made in memory; no tokenizer. Refused before they are made when they won't
  // fit.
  static Result<std::unique_ptr<Engine>> Synthesize(const ModelConfig& config, const EngineOptions& options);

  // Null when the model has none.
  const Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }
  const ModelConfig& config() const { return loaded_.weights.config; }
  const ModelWeights& weights() const { return loaded_.weights; }
  const ModelFiles& files() const { return files_; }
  const LoadReport& load_report() const { return loaded_.report; }
  const MemoryPlan& memory_plan() const { return plan_; }
  const Machine& machine() const { return machine_; }
  Model& model() { return *model_; }
  KvCache& cache() { return *cache_; }
  ThreadPool& pool() { return *pool_; }
  int64_t context_tokens() const { return plan_.cache.max_sequence_tokens; }
  bool is_synthetic() const { return files_.empty(); }

  // What was chosen and why it fits, a line each; for the start-up log.
  std::string StartUpReport() const;
  // Stored weights, caches and workspace that are in use at their peak so far. What is resident stays within
  // 5 % and 100 MB of it.
  int64_t AccountedBytes() const;

 private:
  Engine() = default;
  Status Start(LoadedModel loaded, const KernelTable& table, const EngineOptions& options,
               int64_t weights_to_come);

  Machine machine_;
  ModelFiles files_;
  LoadedModel loaded_;
  std::optional<Tokenizer> tokenizer_;
  MemoryPlan plan_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> cache_;
};

}  // namespace foresight
