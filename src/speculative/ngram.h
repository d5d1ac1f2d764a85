// Drafts by looking the last tokens up in the text so far (prompt lookup; dspark.md 9): what followed them
// last time. Costs nothing, guesses well where text repeats itself. Its drafts are chosen, not drawn: q is a
// point mass.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace foresight {

inline constexpr int kNgramShortest = 2;
inline constexpr int kNgramLongest = 4;

struct NgramDraft {
  int num_tokens = 0;
  int match_length = 0;  // tokens of the suffix that was found again; 0: none
};

// The text of one sequence with an index of its n-grams. O(1) a token, amortised; allocates when it outgrows
// what was reserved.
class NgramDrafter {
 public:
  // `tokens_reserved`: the length up to which nothing is allocated.
  explicit NgramDrafter(int64_t tokens_reserved);

  void Append(TokenId token);
  // Takes back the last tokens.
  void Truncate(int64_t length);
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }

  // The tokens that followed the latest earlier occurrence of the longest suffix (4, 3, 2 tokens) that has
  // one; when they reach the end of the text they go on as a repetition. Fills at most out.size().
  NgramDraft Propose(std::span<TokenId> out) const;

 private:
  static constexpr int kLengths = kNgramLongest - kNgramShortest + 1;
  struct Index {
    std::vector<int32_t> heads;  // [buckets]: the latest n-gram (by its last token) of the bucket; -1: none
    std::vector<int32_t> previous;  // [length]: the one before in the same bucket
  };
  size_t Bucket(const Index& index, int n, int64_t last) const;
  bool Equal(int n, int64_t last, int64_t other) const;
  void Link(int n, int64_t last);
  void Grow();

  std::vector<TokenId> tokens_;
  std::array<Index, kLengths> indexes_;
};

}  // namespace foresight
