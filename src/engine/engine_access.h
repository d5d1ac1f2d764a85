// How the program's own parts and tests get at an engine's inside.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "engine/runtime.h"
#include "foresight/engine.h"

namespace foresight {

// Beside a draft head's weights.
inline constexpr std::string_view kCalibrationFileName = "calibration.json";

struct EngineAccess {
  // An engine around a runtime that was made with the same options. Errors: kInvalidArgument (options).
  static Result<std::unique_ptr<Engine>> Make(std::unique_ptr<Runtime> runtime, const EngineOptions& options);
  // The engine's thread uses it all the time: for what doesn't change only.
  static const Runtime& runtime(const Engine& engine);
};

// The directory's files, or the embedded model's when it is empty. Errors: kNotFound when this build carries
// none.
Result<ModelFiles> OpenModel(const std::string& directory);

}  // namespace foresight
