// The tokens of one sequence as penalties count them (serving.md 7.1, 7.2).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace foresight {

// Allocates in the constructor only. Ids are in [0, vocab_size).
class TokenCounts {
 public:
  explicit TokenCounts(int vocab_size);

  void AddPrompt(std::span<const TokenId> tokens);
  void AddGenerated(TokenId token);
  // Takes back a generated token (a rejected draft token). The last ones first.
  void RemoveGenerated(TokenId token);
  void Clear();

  // Every token that occurs, each once, in no particular order.
  std::span<const TokenId> distinct() const { return distinct_; }
  // Occurrences among the generated tokens.
  int32_t generated(TokenId token) const { return generated_[token]; }

 private:
  std::vector<int32_t> generated_;  // [vocab_size]
  std::vector<uint8_t> in_prompt_;  // [vocab_size]
  std::vector<TokenId> distinct_;   // tokens of which one of the above isn't 0; capacity vocab_size
};

}  // namespace foresight
