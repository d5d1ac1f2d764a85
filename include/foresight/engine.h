// The engine as a library: load a model, submit requests from any thread, receive their answers.
//
//   auto engine = foresight::Engine::Load({.model = "path/to/checkpoint"});
//   auto prompt = (*engine)->Encode("Once upon a time");
//   auto result = (*engine)->Generate({.prompt = *prompt}, [](const foresight::OutputEvent& e) {
//   print(e.text); });
//
// examples/embed.cc is a whole program.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foresight/config.h"
#include "foresight/request.h"
#include "foresight/status.h"

namespace foresight {

class Tokenizer;

// What the engine is doing, as of the end of its last step. Counts are totals since it was made unless said.
struct EngineStatistics {
  int64_t waiting = 0;    // now: requests that have not begun, or were preempted
  int64_t running = 0;    // now
  int64_t finished = 0;   // for whatever reason
  int64_t preempted = 0;  // times
  int64_t restored = 0;   // of those, from a saved state; others were computed anew
  int64_t steps = 0;
  int64_t rows = 0;           // of those: of prompts, tokens and drafts
  int64_t prompt_tokens = 0;  // of admitted requests
  int64_t cached_tokens = 0;  // of those, found in kept prefixes
  int64_t generated_tokens = 0;
  DraftCounts drafts;
  double draft_seconds = 0;      // of all steps: proposing, and what drafters do with a step's rows
  double model_seconds = 0;      // the model's own steps
  double draw_seconds = 0;       // tokens of their logits
  double host_seconds = 0;       // everything else of the steps
  int64_t kept_prefixes = 0;     // now
  int64_t cache_bytes = 0;       // now: caches of running sequences and kept prefixes
  int64_t cache_bytes_peak = 0;  // resident
  int64_t saved_bytes = 0;       // now: states of preempted sequences
};

// Thread-safe. One thread of its own computes; it alone calls sinks.
class Engine {
 public:
  // Errors: kInvalidArgument (options), kNotFound (files), kUnimplemented (another architecture, kernels that
  // this machine can't run), kDataLoss (damaged files), kResourceExhausted (it doesn't fit).
  static Result<std::unique_ptr<Engine>> Load(const EngineOptions& options);
  // Cancels what runs.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a request; the sink gets its answer. Errors, before anything is queued: kInvalidArgument (empty
  // prompt, ids or parameters out of range, longer than the context, no sink), kResourceExhausted (the queue
  // is full), kUnavailable (from a sink, while the engine ends).
  Result<RequestNumber> Submit(Request request, std::shared_ptr<EventSink> sink);
  // Ends it between two steps; nothing when it has finished already.
  void Cancel(RequestNumber number);
  // Submits and waits. `on_output` runs on the engine's thread; `cancel` is looked at every few milliseconds.
  // Errors: those of Submit and those that end a request (RequestResult::status).
  Result<RequestResult> Generate(Request request,
                                 const std::function<void(const OutputEvent&)>& on_output = {},
                                 const std::atomic<bool>* cancel = nullptr);

  // Errors: kInvalidArgument when the model has no tokenizer, and the tokenizer's own.
  Result<std::vector<TokenId>> Encode(
      std::string_view text) const;  // begin-of-sentence in front, if there is one
  Result<std::string> Decode(std::span<const TokenId> tokens) const;

  // "none", "ngram", "mtp", "dspark"; and which head.
  std::string_view draft_method() const;
  std::string_view draft_head() const;
  // The checkpoint's own defaults (generation_config.json).
  const SamplingParams& default_sampling() const;
  int vocab_size() const;
  // Prompt and answer of a request together.
  int64_t context_tokens() const;
  // Null when the model has none.
  const Tokenizer* tokenizer() const;
  // What was chosen and why it fits, a line each.
  std::string StartUpReport() const;
  EngineStatistics statistics() const;
  // Drops every kept prefix between two steps.
  void ClearKeptPrefixes();

 private:
  friend struct EngineAccess;
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace foresight
