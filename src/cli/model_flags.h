// The options that commands share: which model, on what, with which numerics.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "base/status.h"
#include "engine/engine.h"

namespace foresight {

struct ModelFlags {
  std::string directory;  // empty: the embedded model
  std::string table = "cpu";
  std::string numerics = "faithful";
  int threads = NumProcessors();
  int64_t context_tokens = 0;

  void AddTo(CLI::App& command);
  Result<EngineOptions> ToOptions() const;
};

// The directory's files, or the embedded model's. Errors: kNotFound when this build carries no model.
Result<ModelFiles> OpenModel(const std::string& directory);

}  // namespace foresight
