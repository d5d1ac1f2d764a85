#include "sampling/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace foresight {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop) : include_stop_(include_stop) {
  for (std::string& stop : stops) {
    CHECK(!stop.empty());
    Pattern pattern = {std::move(stop), {}, 0};
    pattern.fallback.assign(pattern.text.size(), 0);
    for (size_t i = 1, k = 0; i < pattern.text.size(); ++i) {
      while (k > 0 && pattern.text[i] != pattern.text[k]) k = pattern.fallback[k - 1];
      if (pattern.text[i] == pattern.text[k]) ++k;
      pattern.fallback[i] = k;
    }
    patterns_.push_back(std::move(pattern));
  }
}

std::string_view StopMatcher::Push(std::string_view text) {
  out_.clear();
  if (stopped()) return out_;
  std::swap(out_, held_);
  for (char c : text) {
    out_.push_back(c);
    size_t longest = 0;
    for (size_t p = 0; p < patterns_.size(); ++p) {
      Pattern& pattern = patterns_[p];
      size_t& k = pattern.matched;
      while (k > 0 && c != pattern.text[k]) k = pattern.fallback[k - 1];
      if (c == pattern.text[k]) ++k;
      if (k == pattern.text.size() && k > longest) {
        longest = k;
        stopped_by_ = static_cast<int>(p);
      }
    }
    if (stopped()) {
      if (!include_stop_) out_.resize(out_.size() - longest);
      return out_;
    }
  }
  size_t held = 0;  // the longest end that may begin a stop string
  for (const Pattern& pattern : patterns_) held = std::max(held, pattern.matched);
  held_.assign(out_, out_.size() - held);
  out_.resize(out_.size() - held);
  return out_;
}

std::string_view StopMatcher::Flush() {
  out_.clear();
  std::swap(out_, held_);
  for (Pattern& pattern : patterns_) pattern.matched = 0;
  return out_;
}

void StopMatcher::Reset() {
  stopped_by_ = -1;
  Flush();
}

}  // namespace foresight
