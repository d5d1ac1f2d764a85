#include "sampling/token_counts.h"

#include <algorithm>

#include "base/check.h"

namespace foresight {

TokenCounts::TokenCounts(int vocab_size) : generated_(vocab_size), in_prompt_(vocab_size) {
  distinct_.reserve(vocab_size);
}

void TokenCounts::AddPrompt(std::span<const TokenId> tokens) {
  for (TokenId token : tokens) {
    if (in_prompt_[token] == 0 && generated_[token] == 0) distinct_.push_back(token);
    in_prompt_[token] = 1;
  }
}

void TokenCounts::AddGenerated(TokenId token) {
  if (in_prompt_[token] == 0 && generated_[token] == 0) distinct_.push_back(token);
  ++generated_[token];
}

void TokenCounts::RemoveGenerated(TokenId token) {
  CHECK(generated_[token] > 0, "token {} was not generated", token);
  if (--generated_[token] > 0 || in_prompt_[token] != 0) return;
  // What goes is what came last, most of the time.
  const auto last = std::find(distinct_.rbegin(), distinct_.rend(), token);
  distinct_.erase(std::next(last).base());
}

void TokenCounts::Clear() {
  for (TokenId token : distinct_) {
    generated_[token] = 0;
    in_prompt_[token] = 0;
  }
  distinct_.clear();
}

}  // namespace foresight
