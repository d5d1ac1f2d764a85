// How an engine is made: which model, on what, within which limits.
#pragma once

#include <cstdint>
#include <string>

#include "foresight/numerics.h"
#include "foresight/progress.h"

namespace foresight {

// What proposes tokens that the model then verifies, several in one step.
enum class DraftChoice : uint8_t {
  kAuto,  // the best head that comes with the model, or none
  kNone,
  kNgram,  // prompt look-up
  kMtp,    // the MTP-1 block, chained
  kDSpark,
};

// How a draft is judged. Both are exact: the text has the same distribution as without drafts.
enum class Acceptance : uint8_t {
  kAuto,       // coupled for greedy requests and those with a seed, else rejection
  kCoupled,    // the text of a seed is the text without drafts
  kRejection,  // accepts more
};

struct SpeculationOptions {
  DraftChoice draft = DraftChoice::kAuto;
  std::string draft_head =
      {};              // one of the model's drafts/, or a directory; empty: the model's own or the best
  int drafts_max = 0;  // tokens of a draft; 0: as the head was made for
  // How many drafts a step verifies: "auto", "static:K", "threshold:P", "sync", "lookahead", "async".
  std::string planner = "auto";
  Acceptance acceptance = Acceptance::kAuto;  // of requests that don't say
  // What `foresight calibrate` wrote: for this model, head and draft length, or the load fails. Empty: the
  // head's own calibration.json, if it has one; costs are measured at the start.
  std::string calibration_file = {};
  std::string step_costs_file = {};
};

struct EngineOptions {
  std::string model = {};  // a checkpoint directory in the official layout; empty: the model of this build
  std::string synthetic = {};  // instead: random weights of a released shape, e.g. "flash:2"
  int synthetic_experts = 0;   // of those, keep so many routed experts; 0: all

  int num_threads = 0;         // 0: the processors that the process may run on
  std::string device = "cpu";  // or "cuda", "cuda:N": whose memory holds the model
  std::string table = "auto";  // kernels: the best of the device
  Numerics numerics = Numerics::kFaithful;
  bool check_all_values = false;     // look for NaN and infinity in every matrix: reads the whole model
  ProgressSink* progress = nullptr;  // of the load; borrowed, may be null

  int64_t context_tokens = 0;  // of each sequence; 0: as many as the model allows and memory holds
  int64_t cache_bytes_max =
      0;  // key-value caches of all sequences and kept prefixes; 0: what is free, within reason
  int max_sequences = 8;           // computed at a time
  int step_rows_max = 0;           // tokens of one step; 0: 512, on a GPU 2048 where there is room
  int mixed_prefill_rows_max = 0;  // prompt tokens of a step that decodes as well; 0: 128, on a GPU 512
  int kept_prefixes_max = 8;       // states kept for later prompts; 0: none
  int64_t saved_bytes_max = 256LL << 20;  // host memory for the states of preempted sequences

  SpeculationOptions speculation = {};

  int queued_requests_max = 1024;
  int64_t queued_tokens_max = int64_t{1} << 24;  // of their prompts
};

}  // namespace foresight
