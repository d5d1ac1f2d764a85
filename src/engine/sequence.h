// A request on its way through the engine.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/text_stream.h"
#include "foresight/request.h"
#include "kv_cache/sequence_state.h"
#include "sampling/sampler.h"
#include "speculative/calibration.h"
#include "speculative/draft_block.h"

namespace foresight {

// What the submitting threads and the engine's share. Everything but `cancelled` is written before the engine
// sees it.
struct Ticket {
  RequestNumber number = 0;
  Request request;
  std::shared_ptr<EventSink> sink;
  double submitted = 0;  // seconds of the engine's clock
  std::atomic<bool> cancelled{false};
};

// The engine thread's alone.
struct Sequence {
  std::shared_ptr<Ticket> ticket;
  std::vector<TokenId> tokens;         // prompt and answer; the last one has no state yet
  int64_t tokens_max = 0;              // at which the answer ends
  uint64_t salt = 0;                   // of the prefix cache
  std::optional<SequenceState> state;  // while it runs
  Snapshot saved;                      // while it is preempted, if that pays
  std::optional<Sampler> sampler;      // since it was first admitted
  std::optional<TextStream> text;
  std::optional<DraftBlock> block;  // the same, when the engine drafts
  SamplingRegime regime = SamplingRegime::kUnit;
  int slot = -1;                       // of the drafter, while it runs
  std::optional<FinishReason> ending;  // it ends with the step at hand
  int64_t kept_tokens = 0;             // up to this border, states that are worth keeping were kept
  int64_t shared_tokens = 0;           // a border that another kept prefix has in common with this one, or 0
  int64_t prompt_border = 0;           // the last border before the last token of the prompt
  double admitted = 0;                 // first
  double first_token = 0;
  RequestResult result;

  const Request& request() const { return ticket->request; }
  const SamplingParams& sampling() const { return ticket->request.sampling; }
  int64_t known() const { return std::ssize(tokens); }
  // What a kept prefix may hold: the last token is computed in any case, since its logits are wanted.
  std::span<const TokenId> before_last() const { return {tokens.data(), tokens.size() - 1}; }
  bool began() const { return sampler.has_value(); }
};

}  // namespace foresight
