// How a long piece of work tells how far it is.
#pragma once

#include <cstdint>
#include <string_view>

namespace foresight {

// Called from the thread that does the work. `total` and `done` count the same unit, whatever it is.
class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  // A new stage of the work; ends the one before.
  virtual void Begin(std::string_view stage, uint64_t total) = 0;
  virtual void Update(uint64_t done) = 0;
  virtual void End() = 0;
};

}  // namespace foresight
