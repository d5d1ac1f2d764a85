// Everything that is wrong with an input, gathered so that a user sees it at once.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace foresight {

class ProblemList {
 public:
  // Kept and printed in full; the rest is counted.
  static constexpr size_t kListedMax = 50;

  template <typename... Args>
  void Add(fmt::format_string<Args...> format, Args&&... args) {
    Add(InvalidArgument(format, std::forward<Args>(args)...));
  }
  void Add(const Status& status) {
    if (count_ == 0) code_ = status.code();
    if (++count_ <= kListedMax) listed_.push_back(status.message());
  }

  bool empty() const { return count_ == 0; }
  size_t count() const { return count_; }

  // Ok when empty, else an error with the code of the first problem. One problem stands in the line of
  // `where`, several stand below it, a line each.
  Status ToStatus(std::string_view where) const {
    if (empty()) return Status();
    if (count_ == 1) return Error(code_, "{}: {}", where, listed_[0]);
    std::string text = fmt::format("{}: {} problems", where, count_);
    for (const std::string& line : listed_) text += "\n  " + line;
    if (count_ > listed_.size()) text += fmt::format("\n  ... and {} more", count_ - listed_.size());
    return Status(code_, std::move(text));
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  size_t count_ = 0;
  std::vector<std::string> listed_;
};

}  // namespace foresight
