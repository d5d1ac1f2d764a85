#include "speculative/ngram.h"

#include <gtest/gtest.h>

#include <random>

namespace foresight {
namespace {

using Tokens = std::vector<TokenId>;

NgramDrafter Of(const Tokens& text) {
  NgramDrafter drafter(0);
  for (TokenId token : text) drafter.Append(token);
  return drafter;
}

Tokens Propose(const NgramDrafter& drafter, size_t num, int* match_length = nullptr) {
  Tokens out(num);
  const NgramDraft draft = drafter.Propose(out);
  out.resize(draft.num_tokens);
  if (match_length != nullptr) *match_length = draft.match_length;
  return out;
}

TEST(NgramDrafter, CopiesWhatFollowedTheLongestSuffix) {
  int match = 0;
  EXPECT_EQ(Propose(Of({1, 2, 3, 4, 9, 2, 3, 4, 8, 1, 2, 3, 4}), 2, &match), (Tokens{9, 2}));
  EXPECT_EQ(match, 4);
  EXPECT_EQ(Propose(Of({1, 2, 3, 4, 9, 2, 3, 4, 8, 5, 2, 3, 4}), 2, &match), (Tokens{8, 5}));
  EXPECT_EQ(match, 3);
  EXPECT_EQ(Propose(Of({3, 4, 9, 6, 4}), 2, &match), Tokens());  // one token is no match
  EXPECT_EQ(match, 0);
}

TEST(NgramDrafter, TakesTheLatestOfEqualMatches) {
  EXPECT_EQ(Propose(Of({1, 2, 7, 1, 2, 8, 1, 2}), 1), (Tokens{8}));
}

TEST(NgramDrafter, GoesOnAsARepetitionAtTheEnd) {
  EXPECT_EQ(Propose(Of({5, 5, 5}), 4), (Tokens{5, 5, 5, 5}));
  EXPECT_EQ(Propose(Of({1, 2, 3, 1, 2}), 7), (Tokens{3, 1, 2, 3, 1, 2, 3}));
}

TEST(NgramDrafter, ShortTextsHaveNoMatch) {
  for (int length = 0; length <= 2; ++length) EXPECT_EQ(Propose(Of(Tokens(length, 1)), 3), Tokens());
  EXPECT_EQ(Propose(Of({1, 1, 1}), 0), Tokens());
}

// The definition: every earlier end of the longest suffix that has one, the latest first.
Tokens Expected(const Tokens& text, size_t num) {
  for (int n = kNgramLongest; n >= kNgramShortest; --n) {
    for (int64_t end = std::ssize(text) - 1; end >= n; --end) {
      if (!std::equal(text.end() - n, text.end(), text.begin() + end - n)) continue;
      Tokens longer = text;
      for (size_t i = 0; i < num; ++i) longer.push_back(longer[end + i]);
      return Tokens(longer.end() - num, longer.end());
    }
  }
  return {};
}

TEST(NgramDrafter, AgreesWithASearchThroughAppendsAndTruncations) {
  for (int seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int vocab = 2 + seed % 10;
    NgramDrafter drafter(seed % 2 == 0 ? 0 : 500);
    Tokens text;
    for (int step = 0; step < 400; ++step) {
      if (random() % 4 == 0) {
        const size_t length = text.size() - std::min<size_t>(text.size(), random() % 6);
        text.resize(length);
        drafter.Truncate(std::ssize(text));
      } else {
        text.push_back(static_cast<TokenId>(random() % vocab));
        drafter.Append(text.back());
      }
      ASSERT_EQ(Propose(drafter, 5), Expected(text, 5)) << "step " << step;
    }
  }
}

}  // namespace
}  // namespace foresight
