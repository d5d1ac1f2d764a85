// How a long piece of work tells how far it is.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "foresight/progress.h"

namespace foresight {

// One line at the foot of a terminal, redrawn at most 20 times a second and removed at the end. Silent when
// the stream is no terminal.
class TerminalProgress : public ProgressSink {
 public:
  explicit TerminalProgress(std::FILE* stream = stderr);
  ~TerminalProgress() override { End(); }
  void Begin(std::string_view stage, uint64_t total) override;
  void Update(uint64_t done) override;
  void End() override;

 private:
  void Draw(std::string_view line);

  std::FILE* stream_;
  bool is_terminal_;
  bool drawn_ = false;
  std::string stage_;
  uint64_t total_ = 0;
  std::chrono::steady_clock::time_point next_draw_;
};

// "Loading [#####...............]  25%": a bar of `width` cells.
std::string ProgressLine(std::string_view stage, uint64_t done, uint64_t total, int width);

}  // namespace foresight
