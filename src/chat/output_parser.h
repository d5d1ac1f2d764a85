// What the model generates -> reasoning, content and tool calls (deepseek-v4-model.md 5.3), as it comes or
// all at once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/status.h"
#include "chat/message.h"

namespace foresight {

struct OutputParserOptions {
  bool in_reasoning = false;      // the prompt ended with <think>
  bool parse_tool_calls = false;  // tools were declared; otherwise a block of calls is content
};

// Receives the parts in order; texts come in pieces of any size. A call's fragments join to the JSON text of
// one object.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void OnReasoning(std::string_view text) = 0;
  virtual void OnContent(std::string_view text) = 0;
  virtual void OnCallBegin(std::string_view name) = 0;
  virtual void OnCallArguments(std::string_view json_fragment) = 0;
  virtual void OnCallEnd() = 0;
};

// A state machine over the generated text. How the text is cut into Push calls changes nothing but the size
// of the pieces: bytes are held back only while they may still begin a tag. One thread at a time.
class OutputParser {
 public:
  static constexpr size_t kNameBytesMax = 1024;  // of a function or a parameter

  // `sink` is borrowed.
  OutputParser(const OutputParserOptions& options, OutputSink* sink);

  // Text without the end-of-sequence token, UTF-8 if the arguments are to be.
  // Errors: kInvalidArgument when a block of calls is not as the format demands (an unexpected tag, a
  // parameter twice, a value that is not JSON, a name too long, text after the block). What was delivered
  // before stays; a call without OnCallEnd is not to be made. Each later call returns the same error.
  Status Push(std::string_view text);

  // The text is over: delivers what was held back. Reasoning may end without its tag: the model ran out of
  // tokens. Errors: that of Push; kInvalidArgument when the text ends inside a block of calls.
  Status Finish();

  bool in_reasoning() const { return state_ == State::kReasoning; }
  // A block of calls has begun.
  bool in_calls() const { return state_ != State::kReasoning && state_ != State::kContent; }

 private:
  enum class State : uint8_t {
    kReasoning,
    kContent,
    kBlockBegin,  // behind the tag of the block
    kBlock,       // a call or the block's end
    kCallName,
    kCallBegin,  // behind a call's first line
    kCall,       // a parameter or the call's end
    kCallEnd,    // behind the tag that ends a call
    kParameterName,
    kParameterKind,
    kString,        // a value as it is
    kJson,          // a value in JSON
    kParameterEnd,  // behind the tag that ends a parameter
    kEnd,           // behind the block
  };
  enum class Progress : uint8_t { kMoved, kNeedsMore };

  Result<Progress> Advance();
  // Takes from pending_ the alternative that it begins with: its index, or -1 when more text is needed to
  // tell. Errors: kInvalidArgument when it begins with none.
  Result<int> Expect(std::initializer_list<std::string_view> alternatives, std::string_view where);
  // Takes from pending_ what stands before `tag`, and the tag; none when the tag isn't there yet.
  Result<bool> TakeName(std::string_view tag, std::string* name);
  void BeginParameter();

  OutputParserOptions options_;
  OutputSink* sink_;
  State state_;
  Status error_;
  std::string pending_;  // not delivered yet
  size_t searched_ = 0;  // bytes of pending_ in which the end of a JSON value does not begin
  std::string name_;     // of the parameter at hand
  std::unordered_set<std::string> names_;  // of the call's parameters so far
};

// A whole answer.
struct ChatOutput {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;  // without ids
  bool operator==(const ChatOutput&) const = default;
};

// The parts of a text that may end with the end-of-sequence token. Equals what the stream delivers.
// Errors: those of OutputParser; kInvalidArgument for text behind the end-of-sequence token.
Result<ChatOutput> ParseOutput(std::string_view text, const OutputParserOptions& options);

}  // namespace foresight
