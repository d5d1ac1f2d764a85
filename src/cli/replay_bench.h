// Speculation at the step costs of released layer shapes: random weights, on which drafts mean nothing, with
// confidences and outcomes that were recorded on a trained model (speculative/draft_traces.h).
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "cli/spec_bench.h"
#include "speculative/calibration.h"
#include "speculative/draft_traces.h"

namespace foresight {

// Traces of the model's heads dspark and mtp on the prompts of `options`. Errors: kNotFound
// (no such head), those of loading and recording.
Result<DraftTraces> RecordTraces(const SpecBenchOptions& options);

struct ReplayBenchOptions {
  SpecBenchOptions bench;  // `engine.synthetic` names a shape without a head; domains are the traces'
  int prompt_tokens = 32;
  std::string traces_name;  // for the report
  DraftTraces traces;       // of dspark and mtp
};

// Errors: kInvalidArgument (traces of one drafter alone, a shape with a head), those of loading and requests.
Result<SpecReport> RunReplayBench(const ReplayBenchOptions& options);

}  // namespace foresight
