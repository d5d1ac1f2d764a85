// How the program's own parts and tests get at an engine's inside.
#pragma once

#include <chrono>
#include <limits>
#include <memory>
#include <string>
#include <string_view>

#include "engine/runtime.h"
#include "engine/speculation.h"
#include "foresight/engine.h"
#include "speculative/calibration.h"
#include "speculative/draft_traces.h"

namespace foresight {

// Beside a draft head's weights.
inline constexpr std::string_view kCalibrationFileName = "calibration.json";

// Whether options make sense, before anything is loaded. Errors: kInvalidArgument, saying which doesn't.
Status CheckEngineOptions(const EngineOptions& options);

struct EngineAccess {
  // An engine around a runtime that was made with the same options. Errors: kInvalidArgument (options).
  static Result<std::unique_ptr<Engine>> Make(std::unique_ptr<Runtime> runtime, const EngineOptions& options);
  // The same with replayed drafts (engine/draft_replay.h): for benchmarks. `trace` outlives the engine; null:
  // nothing drafts.
  static Result<std::unique_ptr<Engine>> MakeReplay(std::unique_ptr<Runtime> runtime,
                                                    const EngineOptions& options, const DraftTrace* trace);
  // The engine's thread uses it all the time: for what doesn't change only.
  static const Runtime& runtime(const Engine& engine);
  // The engine begins no step once it has drawn so many tokens (EngineStatistics::generated_tokens), until it
  // is told another number: what is submitted meanwhile begins together. 0: none from now on.
  static void StopAt(Engine& engine, int64_t generated_tokens);
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  // Until it waits there or has nothing to do; its statistics hold all it did. False: not within that time.
  static bool WaitUntilAtRest(const Engine& engine, std::chrono::milliseconds at_most);

 private:
  static Result<std::unique_ptr<Engine>> Start(std::unique_ptr<Runtime> runtime,
                                               std::unique_ptr<Speculation> speculation,
                                               const EngineOptions& options);
};

// Of the file that the options name, or of the draft head's own; none: it has none for drafts of this length.
// Errors: kNotFound, kInvalidArgument (a file that is none, or is for another head, model, build or length).
Result<std::optional<CalibrationTable>> CalibrationOf(const Runtime& runtime, const EngineOptions& options);

// The directory's files, or the embedded model's when it is empty. Errors: kNotFound when this build carries
// none.
Result<ModelFiles> OpenModel(const std::string& directory);

}  // namespace foresight
