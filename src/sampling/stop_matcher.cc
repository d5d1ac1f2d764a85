#include "sampling/stop_matcher.h"

#include <algorithm>

#include "base/check.h"

namespace foresight {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop) : include_stop_(include_stop) {
  for (std::string& text : stops) {
    CHECK(!text.empty());
    Pattern pattern{.text = std::move(text), .fallback = {}};
    pattern.fallback.resize(pattern.text.size());
    size_t length = 0;
    for (size_t i = 1; i < pattern.text.size(); ++i) {
      while (length > 0 && pattern.text[i] != pattern.text[length]) length = pattern.fallback[length - 1];
      if (pattern.text[i] == pattern.text[length]) ++length;
      pattern.fallback[i] = length;
    }
    patterns_.push_back(std::move(pattern));
  }
}

std::string_view StopMatcher::Push(std::string_view text) {
  out_.clear();
  if (stopped()) return out_;
  for (const char c : text) {
    held_ += c;
    size_t longest = 0;
    for (size_t p = 0; p < patterns_.size(); ++p) {
      Pattern& pattern = patterns_[p];
      while (pattern.matched > 0 && c != pattern.text[pattern.matched]) {
        pattern.matched = pattern.fallback[pattern.matched - 1];
      }
      if (c == pattern.text[pattern.matched]) ++pattern.matched;
      if (pattern.matched < pattern.text.size()) continue;
      if (pattern.text.size() > longest) {
        longest = pattern.text.size();
        stopped_by_ = static_cast<int>(p);
      }
    }
    if (stopped()) {
      // All of the stop string is held: it was a prefix of itself at every byte.
      out_.append(held_, 0, held_.size() - (include_stop_ ? 0 : longest));
      held_.clear();
      return out_;
    }
  }
  size_t keep = 0;
  for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.matched);
  // Never cuts a character: the held part begins where a stop string does, at a character's first byte.
  out_.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return out_;
}

std::string_view StopMatcher::Flush() {
  out_ = std::move(held_);
  held_.clear();
  return out_;
}

void StopMatcher::Reset() {
  for (Pattern& pattern : patterns_) pattern.matched = 0;
  stopped_by_ = -1;
  held_.clear();
  out_.clear();
}

}  // namespace foresight
