// The options that commands share: which model, on what, with which numerics.
#pragma once

#include <memory>
#include <string>

#include "base/thread_pool.h"
#include "cli/command_line.h"
#include "foresight/config.h"

namespace foresight {

struct ModelFlags {
  std::string directory;  // empty: the embedded model
  std::string device = "cpu";
  std::string table = "auto";
  std::string numerics = "faithful";
  int threads = NumProcessors();
  int64_t context_tokens = 0;

  void AddTo(Command& command);
  EngineOptions ToOptions() const;
};

}  // namespace foresight
