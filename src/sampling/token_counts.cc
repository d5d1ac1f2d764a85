#include "sampling/token_counts.h"

#include <algorithm>

#include "base/check.h"

namespace foresight {

TokenCounts::TokenCounts(int vocab_size) : generated_(vocab_size, 0), in_prompt_(vocab_size, 0) {
  distinct_.reserve(vocab_size);
}

void TokenCounts::AddPrompt(std::span<const TokenId> tokens) {
  for (TokenId token : tokens) {
    DCHECK(token >= 0 && token < static_cast<int>(in_prompt_.size()));
    if (!in_prompt_[token] && generated_[token] == 0) distinct_.push_back(token);
    in_prompt_[token] = 1;
  }
}

void TokenCounts::AddGenerated(TokenId token) {
  DCHECK(token >= 0 && token < static_cast<int>(in_prompt_.size()));
  if (!in_prompt_[token] && generated_[token] == 0) distinct_.push_back(token);
  ++generated_[token];
}

void TokenCounts::RemoveGenerated(TokenId token) {
  CHECK(generated_[token] > 0, "token {} is taken back more often than added", token);
  if (--generated_[token] > 0 || in_prompt_[token]) return;
  // Among the last ones, when the last tokens are taken back first.
  const auto place = std::find(distinct_.rbegin(), distinct_.rend(), token);
  *place = distinct_.back();
  distinct_.pop_back();
}

void TokenCounts::Clear() {
  for (TokenId token : distinct_) {
    generated_[token] = 0;
    in_prompt_[token] = 0;
  }
  distinct_.clear();
}

}  // namespace foresight
