// What a client asks of the engine and what comes back.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foresight/config.h"
#include "foresight/ids.h"
#include "foresight/sampling_params.h"
#include "foresight/status.h"

namespace foresight {

// Names a submitted request for its engine's lifetime.
using RequestNumber = uint64_t;

inline constexpr int kPriorityMax = 100;
inline constexpr int kDraftPositionsMax = 16;  // tokens of a draft

struct Request {
  std::vector<TokenId> prompt = {};
  SamplingParams sampling = {};
  bool ignore_eos = false;
  int choice = 0;               // tells the answers to one prompt apart that share a seed
  int priority = 0;             // -kPriorityMax .. kPriorityMax, smaller first; waiting makes up for it
  double timeout_seconds = 0;   // from Submit; 0: none
  std::string cache_salt = {};  // prefixes are shared between requests with the same salt only
  bool read_cache = true;       // begin with what is kept of the prompt
  int drafts_max = kDraftPositionsMax;  // tokens of its drafts; 0: one token a step, whatever others do
  Acceptance acceptance = Acceptance::kAuto;
  bool keep_in_cache = true;  // keep prompt and answer for later requests
};

enum class FinishReason : uint8_t {
  kStop,       // the end-of-sequence token, or a stop string
  kLength,     // max_tokens, or the context is full
  kCancelled,  // by the caller, or the engine was shut down
  kDeadline,   // timeout_seconds, after the first token
  kError,      // RequestResult::status says which
};

std::string_view FinishReasonName(FinishReason reason);  // "stop", "length", ...

struct OutputToken {
  TokenId token = 0;
  // With sampling.logprobs: of the raw model distribution, natural logarithm.
  double logprob = 0;
  std::span<const TokenLogProb> top;  // [sampling.logprobs]
};

// A piece of an answer. Views are valid during the call.
struct OutputEvent {
  std::span<const OutputToken> tokens;  // one or, with speculation, several; none when only text is left
  // Whole UTF-8 characters; what may begin a stop string is held back. Empty without a tokenizer.
  std::string_view text;
};

// What drafting did. A draft's position counts from 0; `reached`: verified, and those before it accepted; so
// accepted / reached is how often a draft is accepted when it can be.
struct DraftCounts {
  int64_t steps = 0;         // that drew tokens
  int64_t drafted = 0;       // tokens
  int64_t without_room = 0;  // steps whose drafts found no memory
  std::array<int64_t, kDraftPositionsMax> verified = {};
  std::array<int64_t, kDraftPositionsMax> reached = {};
  std::array<int64_t, kDraftPositionsMax> accepted = {};

  int64_t total_verified() const;
  int64_t total_accepted() const;
  void Add(const DraftCounts& other);
  bool operator==(const DraftCounts&) const = default;
};

struct RequestResult {
  FinishReason finish = FinishReason::kStop;
  Status status = {};    // not ok for kError
  int stop_string = -1;  // which of sampling.stop ended it
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;      // of the prompt, whose state was kept from earlier requests
  int64_t completion_tokens = 0;  // the end-of-sequence token included; none behind a stop
  double queue_seconds = 0;       // until it was admitted
  double prefill_seconds = 0;     // from then to the first token
  double decode_seconds = 0;      // from then to the last
  int64_t seed = 0;               // the one in use
  int64_t preemptions = 0;
  DraftCounts drafts = {};
  int64_t drafted_tokens = 0;     // of completion_tokens, those that came from a draft
  double plain_step_seconds = 0;  // what a step without drafts takes this request alone; 0: not measured

  double prefill_tokens_per_second() const;
  double decode_tokens_per_second() const;
};

// Receives one answer. Called on the engine's thread: return soon, do not throw, and neither wait for another
// request nor end the engine. To submit and to cancel is fine.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void OnOutput(const OutputEvent& event) = 0;
  // Once, and the last call.
  virtual void OnFinish(const RequestResult& result) = 0;
};

}  // namespace foresight
