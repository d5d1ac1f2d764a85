// Messages to prompt text in DeepSeek-V4's layout (deepseek-v4-model.md 5.2 to 5.4). The format has no
// template file: it is defined by code, and this is that code.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "chat/message.h"
#include "tokenizer/tokenizer.h"

namespace foresight {

// How hard to think. The releases differ in which text belongs to which word.
enum class ReasoningEffort : uint8_t { kLow, kHigh, kMax };
enum class EffortLadder : uint8_t {
  kPreview,  // the first release: a text for kMax alone
  kRefresh,  // later releases (0731, 0813): that text for kHigh, a stronger one for kMax
};

struct PromptOptions {
  bool thinking = false;  // the answer begins with reasoning
  bool drop_thinking =
      true;  // leaves out the reasoning of turns before the last question; off when there are tools
  ReasoningEffort effort = ReasoningEffort::kLow;  // matters with `thinking` only
  EffortLadder ladder = EffortLadder::kPreview;
};

// A rendered prompt that knows which of its bytes are tokens of the layout and which were written by
// somebody: a user who writes <｜User｜> gets text, not a turn.
class Prompt {
 public:
  struct Piece {
    bool is_token;
    std::string text;
  };

  // Text by a person or a model: no token is recognised in it.
  void AddText(std::string_view text);
  // Text of the layout itself: its tokens are recognised.
  void AddLayout(std::string_view text);

  std::string ToString() const;
  // Errors: those of Tokenizer::Encode; kInvalidArgument when the tokenizer lacks a token of the layout.
  Result<std::vector<TokenId>> Encode(const Tokenizer& tokenizer) const;

 private:
  std::vector<Piece> pieces_;  // no two texts in a row, so that they are tokenized as one
};

// The prompt for the turn that follows `messages`, from the BOS token on. It ends with <think> or </think>
// where an answer is expected (after a user or developer message, or a task). Errors: kInvalidArgument naming
// messages[i]: a field that doesn't belong to its role, JSON that isn't.
Result<Prompt> RenderPrompt(std::span<const Message> messages, const PromptOptions& options = {});

}  // namespace foresight
