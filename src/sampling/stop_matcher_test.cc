#include "sampling/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace foresight {
namespace {

// What goes out for a text cut into the given pieces.
std::string Stream(StopMatcher& matcher, const std::vector<std::string>& pieces) {
  std::string out;
  for (const std::string& piece : pieces) out += matcher.Push(piece);
  return out + std::string(matcher.Flush());
}

TEST(StopMatcher, HoldsBackWhatMayBeginAStop) {
  StopMatcher matcher({"STOP", "\n\n"});
  EXPECT_EQ(matcher.Push("abcS"), "abc");
  EXPECT_EQ(matcher.held_bytes(), 1u);
  EXPECT_EQ(matcher.Push("TO"), "");
  EXPECT_EQ(matcher.Push("x\n"), "STOx");
  EXPECT_EQ(matcher.Push("y"), "\ny");
  EXPECT_EQ(matcher.Push("zST"), "z");
  EXPECT_EQ(matcher.Push("OP and more"), "");
  EXPECT_EQ(matcher.stopped_by(), 0);
  EXPECT_EQ(matcher.Push("STOP"), "");
  EXPECT_EQ(matcher.Flush(), "");
  matcher.Reset();
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(Stream(matcher, {"a\n"}), "a\n");
}

TEST(StopMatcher, IncludesTheStopWhenAsked) {
  StopMatcher matcher({"end"}, /*include_stop=*/true);
  EXPECT_EQ(Stream(matcher, {"the e", "nd of it"}), "the end");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcher, TheLongestThatEndsFirst) {
  StopMatcher both({"b", "aab"});
  EXPECT_EQ(Stream(both, {"xaab"}), "x");
  EXPECT_EQ(both.stopped_by(), 1);
  StopMatcher first({"abcd", "bc"});
  EXPECT_EQ(Stream(first, {"xabcd"}), "xa");
  EXPECT_EQ(first.stopped_by(), 1);
}

TEST(StopMatcher, WholeCharacters) {
  StopMatcher matcher({"é!"});
  EXPECT_EQ(matcher.Push("caf\u00e9"), "caf");
  EXPECT_EQ(matcher.Push("\u00e8"), "\u00e9\u00e8");  // shares a first byte with é
}

// Small alphabets, so that prefixes overlap; every cutting into pieces gives what a plain search gives.
TEST(StopMatcher, EqualsThePlainSearchHoweverTheTextIsCut) {
  std::mt19937 random(3);
  const auto text_of = [&](size_t length) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + random() % 2);
    return text;
  };
  int stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0, n = random() % 4; i < n; ++i) stops.push_back(text_of(1 + random() % 7));
    const std::string text = text_of(random() % 30);
    std::string want = text;
    bool found = false;
    for (size_t end = 1; end <= text.size() && !found; ++end) {
      size_t longest = 0;
      for (const std::string& stop : stops) {
        if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
      }
      if (longest > 0) {
        found = true;
        want = text.substr(0, end - longest);
      }
    }
    std::vector<std::string> pieces;
    for (size_t i = 0; i < text.size();) {
      const size_t n = 1 + random() % 5;
      pieces.push_back(text.substr(i, n));
      i += n;
    }
    StopMatcher matcher(stops);
    ASSERT_EQ(Stream(matcher, pieces), want);
    ASSERT_EQ(matcher.stopped(), found);
    stopped += found;
  }
  EXPECT_GT(stopped, 500);
}

}  // namespace
}  // namespace foresight
