#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

namespace foresight {

std::string ProgressLine(std::string_view stage, uint64_t done, uint64_t total, int width) {
  const double share =
      total == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const int full = static_cast<int>(share * width);
  return fmt::format("{} [{:#<{}}{:.<{}}] {:3.0f}%", stage, "", full, "", width - full, share * 100);
}

TerminalProgress::TerminalProgress(std::FILE* stream)
    : stream_(stream), is_terminal_(isatty(fileno(stream)) == 1) {}

void TerminalProgress::Begin(std::string_view stage, uint64_t total) {
  End();
  stage_ = stage;
  total_ = total;
  next_draw_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);  // short stages stay unseen
}

void TerminalProgress::Update(uint64_t done) {
  if (!is_terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_draw_) return;
  next_draw_ = now + std::chrono::milliseconds(50);
  Draw(ProgressLine(stage_, done, total_, 30));
  drawn_ = true;
}

void TerminalProgress::End() {
  if (!drawn_) return;
  Draw("");
  drawn_ = false;
}

// fmt::print would throw where the terminal has gone.
void TerminalProgress::Draw(std::string_view line) {
  std::fputs(fmt::format("\r\x1b[K{}", line).c_str(), stream_);
  std::fflush(stream_);
}

}  // namespace foresight
