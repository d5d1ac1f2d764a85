#include "tokenizer/added_tokens.h"

#include "base/check.h"

namespace foresight {

AddedTokenTrie::AddedTokenTrie(std::span<const std::pair<std::string_view, TokenId>> tokens)
    : AddedTokenTrie() {
  auto new_node = [&](uint8_t byte, int32_t sibling) {
    nodes_.push_back({.byte = byte, .sibling = sibling});
    return static_cast<int32_t>(nodes_.size()) - 1;
  };
  for (const auto& [content, id] : tokens) {
    CHECK(!content.empty() && content.size() <= kContentBytesMax, "added token {}: {} bytes", id,
          content.size());
    uint8_t first = static_cast<uint8_t>(content[0]);
    if (root_[first] < 0) root_[first] = new_node(first, -1);
    int32_t node = root_[first];
    for (char c : content.substr(1)) {
      uint8_t byte = static_cast<uint8_t>(c);
      int32_t child = Child(node, byte);
      if (child < 0) {
        child = new_node(byte, nodes_[node].child);
        nodes_[node].child = child;
      }
      node = child;
    }
    CHECK(nodes_[node].id < 0, "added tokens {} and {} are the same text", nodes_[node].id, id);
    nodes_[node].id = id;
  }
}

std::optional<AddedTokenTrie::Match> AddedTokenTrie::Find(std::string_view text, size_t begin) const {
  if (nodes_.empty()) return std::nullopt;
  for (; begin < text.size(); ++begin) {
    int32_t node = root_[static_cast<uint8_t>(text[begin])];
    std::optional<Match> longest;
    for (size_t length = 1; node >= 0; ++length) {
      if (nodes_[node].id >= 0) longest = Match{begin, length, nodes_[node].id};
      if (begin + length == text.size()) break;
      node = Child(node, static_cast<uint8_t>(text[begin + length]));
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

int32_t AddedTokenTrie::Child(int32_t node, uint8_t byte) const {
  int32_t child = nodes_[node].child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].sibling;
  return child;
}

}  // namespace foresight
