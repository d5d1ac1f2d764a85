// One sequence at a time: prompt in, text out. The loop that a scheduler will drive for many.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "sampling/sampler.h"
#include "sampling/stop_matcher.h"

namespace foresight {

enum class FinishReason : uint8_t {
  kStop,       // the end-of-sequence token, or a stop string
  kLength,     // max_tokens, or the context is full
  kCancelled,  // by the caller's flag
};

std::string_view FinishReasonName(FinishReason reason);  // "stop", "length", "cancelled"

struct GenerationRequest {
  std::span<const TokenId>
      prompt;  // the whole timeline, what an earlier request has left in the state included
  SamplingParams sampling = {};
  bool ignore_eos = false;
  const std::atomic<bool>* cancel = nullptr;  // looked at between steps; may be null
};

// Receives the answer as it grows, on the thread that generates.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  // Whole UTF-8 characters; text that may begin a stop string is held back. Empty without a tokenizer.
  virtual void OnText(std::string_view text) = 0;
  virtual void OnToken(const SampledToken& token) = 0;
};

struct GenerationResult {
  FinishReason finish = FinishReason::kStop;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;      // of the prompt, that were in the state already
  int64_t completion_tokens = 0;  // the end-of-sequence token included
  double prefill_seconds = 0;     // until the first token's logits
  double decode_seconds = 0;      // of the steps after the first token
  int64_t seed = 0;               // the one in use

  double prefill_tokens_per_second() const;
  double decode_tokens_per_second() const;
};

// A timeline that keeps its state between requests, so that a conversation prefills only what is new. Used by
// one thread; the engine outlives it.
class Session {
 public:
  // Errors: kResourceExhausted (as many sequences exist as the engine was made for).
  static Result<Session> Create(Engine& engine);

  // Errors: kInvalidArgument (empty prompt, ids or parameters out of range, prompt longer than the context),
  // kResourceExhausted (cache blocks), kInternal (the model's logits are not numbers). The state holds what
  // was computed until then.
  Result<GenerationResult> Generate(const GenerationRequest& request, GenerationSink& sink);

 private:
  Session(Engine& engine, SequenceState state) : engine_(&engine), state_(std::move(state)) {}
  // Keeps of the state what the prompt begins with; returns how many tokens.
  Result<int64_t> ReusePrefix(std::span<const TokenId> prompt);

  Engine* engine_;
  SequenceState state_;
  std::vector<TokenId> tokens_;  // [state_.length()]: what the state has seen
};

}  // namespace foresight
