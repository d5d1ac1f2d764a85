// Stop strings over streamed text (serving.md 7.4): nothing that may begin one leaves before it is known not
// to.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace foresight {

// Stops at the first byte that completes a stop string; when it completes several, the longest counts. So the
// result doesn't depend on how the text is cut into pieces.
class StopMatcher {
 public:
  // Stop strings are not empty. With include_stop the stop string is part of the text.
  explicit StopMatcher(std::vector<std::string> stops = {}, bool include_stop = false);

  // Appends text (whole UTF-8 characters) and returns what may go out now, whole characters as well; valid
  // until the next call. Once stopped, everything further is dropped.
  std::string_view Push(std::string_view text);
  // The text has ended: what was held back.
  std::string_view Flush();

  bool stopped() const { return stopped_by_ >= 0; }
  // The index of the stop string that was found, or -1.
  int stopped_by() const { return stopped_by_; }
  // Bytes held back.
  size_t held_bytes() const { return held_.size(); }
  void Reset();

 private:
  struct Pattern {
    std::string text;
    // Knuth-Morris-Pratt: the length of the longest proper prefix of text that ends text[0..i].
    std::vector<size_t> fallback;
    size_t matched = 0;  // the longest prefix of text that ends the stream so far
  };

  std::vector<Pattern> patterns_;
  bool include_stop_ = false;
  int stopped_by_ = -1;
  std::string held_;  // what didn't go out yet; always a prefix of some stop string between calls
  std::string out_;   // what the last call returned
};

}  // namespace foresight
