// A model that is ready to run: its weights, tokenizer, kernels, threads and caches, each with one owner
// here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "engine/draft_choice.h"
#include "engine/machine.h"
#include "engine/memory_plan.h"
#include "foresight/config.h"
#include "kernels/backend.h"
#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "model/placement.h"
#include "tokenizer/tokenizer.h"
#include "weights/loader.h"
#include "weights/model_files.h"

namespace foresight {

// Used by one thread at a time.
class Runtime {
 public:
  // Errors: what LoadModel, Tokenizer::Load, OpenBackend, PlaceModel, PlanMemory and KvCache::Create say;
  // kNotFound when `files` is empty. A model without tokenizer.json runs on token ids alone. `options` says
  // how; which model is `files` here.
  static Result<std::unique_ptr<Runtime>> Load(const ModelFiles& files, const EngineOptions& options);
  // Random weights of a config, made in memory; no tokenizer. Refused before they are made when they won't
  // fit.
  static Result<std::unique_ptr<Runtime>> Synthesize(const ModelConfig& config, const EngineOptions& options);
  // The same around weights that were made before: runtimes share them.
  static Result<std::unique_ptr<Runtime>> FromSynthetic(const LoadedModel& made,
                                                        const EngineOptions& options);
  // The same on a backend that was opened before, and on the device's copy of them when there is one (it
  // outlives the runtime's device).
  static Result<std::unique_ptr<Runtime>> FromSynthetic(
      const LoadedModel& made, const EngineOptions& options, Backend backend,
      std::shared_ptr<const DeviceWeights> placed = nullptr);

  // For random weights, whose tokens are text only then; before requests come.
  void SetTokenizer(Tokenizer tokenizer) { tokenizer_ = std::move(tokenizer); }
  // Null when the model has none.
  const Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }
  const ModelConfig& config() const { return loaded_.weights.config; }
  const ModelWeights& weights() const { return loaded_.weights; }
  const ModelFiles& files() const { return files_; }
  // What the model drafts with, and which head that is.
  DraftMethod draft_method() const { return draft_.method; }
  const std::string& draft_head() const { return draft_.name; }
  int drafts_max() const { return drafts_max_; }  // tokens of a draft; 0: nothing drafts
  // Name the tensors that calibrations and step costs belong to.
  const std::string& target_hash() const { return target_hash_; }
  const std::string& draft_hash() const { return draft_hash_; }  // empty without a head
  std::string models_name() const {
    return draft_hash_.empty() ? target_hash_ : target_hash_ + "+" + draft_hash_;
  }
  // Of this program on these kernels, device and threads.
  std::string build_name() const;
  static std::string version();  // of this program
  std::string device_name() const;
  // Where the head that drafts comes from; empty without a head.
  const ModelFiles& draft_files() const { return draft_.own_head ? files_ : draft_.head; }
  const LoadReport& load_report() const { return loaded_.report; }
  const MemoryPlan& memory_plan() const { return plan_; }
  const Machine& machine() const { return machine_; }
  Model& model() { return *model_; }
  KvCache& cache() { return *cache_; }
  ThreadPool& pool() { return *pool_; }
  Device& device() { return model_->device(); }
  // Of one step; what the options leave open is chosen for the device.
  int step_rows_max() const { return step_rows_max_; }
  int mixed_prefill_rows_max() const { return mixed_prefill_rows_max_; }
  // Of one sequence: what the plan says, or what the blocks hold if that is less.
  int64_t context_tokens() const { return context_tokens_; }
  bool is_synthetic() const { return files_.empty(); }

  // What was chosen and why it fits, a line each; for the start-up log.
  std::string StartUpReport();
  // Stored weights, caches and workspace that are in use at their peak so far. What is resident stays within
  // 5 % and 100 MB of it.
  int64_t AccountedBytes() const;

 private:
  Runtime() = default;
  Status Start(LoadedModel loaded, const EngineOptions& options, int64_t weights_to_come,
               std::shared_ptr<const DeviceWeights> placed = nullptr);

  Machine machine_;
  ModelFiles files_;
  Backend backend_;
  LoadedModel loaded_;
  Placement placement_;  // with a device of its own
  ChosenDraft draft_;
  int drafts_max_ = 0;
  std::string target_hash_;
  std::string draft_hash_;
  std::optional<Tokenizer> tokenizer_;
  int64_t available_bytes_ = 0;  // of the device, at the start
  MemoryPlan plan_;
  int step_rows_max_ = 0;
  int mixed_prefill_rows_max_ = 0;
  int64_t context_tokens_ = 0;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> cache_;
};

}  // namespace foresight
