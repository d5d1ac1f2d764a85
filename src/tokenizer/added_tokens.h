// Finding the added tokens, such as <｜User｜>, in a text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace foresight {

// A trie over the contents of added tokens. Immutable once built: any thread may read.
class AddedTokenTrie {
 public:
  static constexpr size_t kContentBytesMax = 1024;  // bounds what Find looks at again and again

  struct Match {
    size_t begin = 0;
    size_t length = 0;
    TokenId id = 0;
  };

  AddedTokenTrie() { root_.fill(-1); }
  // Contents are different from each other, not empty, and no longer than kContentBytesMax.
  explicit AddedTokenTrie(std::span<const std::pair<std::string_view, TokenId>> tokens);

  // The leftmost token at or after `begin`, and of those that start there the longest.
  std::optional<Match> Find(std::string_view text, size_t begin) const;

 private:
  struct Node {
    uint8_t byte;          // that leads here
    TokenId id = -1;       // of the token that ends here
    int32_t child = -1;    // the first one
    int32_t sibling = -1;  // the next child of the same parent
  };

  int32_t Child(int32_t node, uint8_t byte) const;

  std::array<int32_t, 256> root_;  // the node for each first byte, or -1: most places of a text end here
  std::vector<Node> nodes_;
};

}  // namespace foresight
