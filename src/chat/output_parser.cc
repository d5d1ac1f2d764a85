#include "chat/output_parser.h"

#include <initializer_list>
#include <optional>

#include "base/json.h"
#include "chat/markup.h"
#include "chat/python_json.h"
#include "tokenizer/streaming_decoder.h"
#include "tokenizer/tokenizer.h"

namespace foresight {
namespace {

struct TagSearch {
  size_t begin;  // of the tag, or of what may become one; the size of the text when there is neither
  std::optional<int> which;  // the tag that stands there whole
};

// The first place from `from` on where one of the tags stands or the text ends inside one.
TagSearch FindTag(std::string_view text, size_t from, std::initializer_list<std::string_view> tags) {
  TagSearch first{text.size(), std::nullopt};
  int which = 0;
  for (const std::string_view tag : tags) {
    for (size_t at = text.find(tag[0], from); at < first.begin; at = text.find(tag[0], at + 1)) {
      const std::string_view rest = text.substr(at);
      if (rest.starts_with(tag)) {
        first = {at, which};
      } else if (tag.starts_with(rest)) {
        first = {at, std::nullopt};
      }
    }
    ++which;
  }
  return first;
}

// A few characters of what came, for messages.
std::string Show(std::string_view text) {
  return JsonQuoted(ReplaceInvalidUtf8(text.substr(0, 40)));
}

class Collector : public OutputSink {
 public:
  void OnReasoning(std::string_view text) override { output.reasoning += text; }
  void OnContent(std::string_view text) override { output.content += text; }
  void OnCallBegin(std::string_view name) override {
    output.tool_calls.push_back({"", std::string(name), ""});
  }
  void OnCallArguments(std::string_view fragment) override { output.tool_calls.back().arguments += fragment; }
  void OnCallEnd() override {}

  ChatOutput output;
};

}  // namespace

OutputParser::OutputParser(const OutputParserOptions& options, OutputSink* sink)
    : options_(options), sink_(sink), state_(options.in_reasoning ? State::kReasoning : State::kContent) {}

Status OutputParser::Push(std::string_view text) {
  RETURN_IF_ERROR(error_);
  pending_ += text;
  for (;;) {
    const Result<Progress> progress = Advance();
    if (!progress.ok()) return error_ = progress.status();
    if (*progress == Progress::kNeedsMore) return Status();
  }
}

Status OutputParser::Finish() {
  RETURN_IF_ERROR(error_);
  if (state_ == State::kReasoning && !pending_.empty()) sink_->OnReasoning(pending_);
  if (state_ == State::kContent && !pending_.empty()) sink_->OnContent(pending_);
  pending_.clear();
  if (in_calls() && state_ != State::kEnd)
    error_ = InvalidArgument("tool calls: the text ends inside the block");
  return error_;
}

Result<OutputParser::Progress> OutputParser::Advance() {
  switch (state_) {
    case State::kReasoning:
    case State::kContent: {
      const bool reasons = state_ == State::kReasoning;
      // Deep in thought the model may call tools without closing its reasoning.
      TagSearch tag{pending_.size(), std::nullopt};
      if (reasons && options_.parse_tool_calls) {
        tag = FindTag(pending_, 0, {kCallsBegin, kThinkEndToken});
      } else if (reasons) {
        tag = FindTag(pending_, 0, {kThinkEndToken});
      } else if (options_.parse_tool_calls) {
        tag = FindTag(pending_, 0, {kCallsBegin});
      }
      const std::string_view text = std::string_view(pending_).substr(0, tag.begin);
      if (!text.empty() && reasons) sink_->OnReasoning(text);
      if (!text.empty() && !reasons) sink_->OnContent(text);
      pending_.erase(0, tag.begin);
      if (!tag.which) return Progress::kNeedsMore;
      const bool calls = pending_.starts_with(kCallsBegin);
      pending_.erase(0, calls ? kCallsBegin.size() : kThinkEndToken.size());
      state_ = calls ? State::kBlockBegin : State::kContent;
      return Progress::kMoved;
    }
    case State::kBlockBegin: {
      ASSIGN_OR_RETURN(const int which, Expect({">\n"}, "at the begin of the block"));
      if (which < 0) return Progress::kNeedsMore;
      state_ = State::kBlock;
      return Progress::kMoved;
    }
    case State::kBlock: {
      ASSIGN_OR_RETURN(const int which, Expect({kInvokeBegin, kCallsEnd}, "between calls"));
      if (which < 0) return Progress::kNeedsMore;
      state_ = which == 0 ? State::kCallName : State::kEnd;
      return Progress::kMoved;
    }
    case State::kCallName: {
      std::string name;
      ASSIGN_OR_RETURN(const bool taken, TakeName("\">\n", &name));
      if (!taken) return Progress::kNeedsMore;
      sink_->OnCallBegin(name);
      names_.clear();
      state_ = State::kCallBegin;
      return Progress::kMoved;
    }
    case State::kCallBegin: {
      // A call without parameters has an empty line in their place; models leave it out, too.
      ASSIGN_OR_RETURN(const int which, Expect({kParameterBegin, "\n" + std::string(kInvokeEnd), kInvokeEnd},
                                               "at the begin of a call"));
      if (which < 0) return Progress::kNeedsMore;
      sink_->OnCallArguments("{");
      if (which == 0) {
        state_ = State::kParameterName;
      } else {
        sink_->OnCallArguments("}");
        sink_->OnCallEnd();
        state_ = State::kCallEnd;
      }
      return Progress::kMoved;
    }
    case State::kCall: {
      ASSIGN_OR_RETURN(const int which, Expect({kParameterBegin, kInvokeEnd}, "inside a call"));
      if (which < 0) return Progress::kNeedsMore;
      if (which == 0) {
        sink_->OnCallArguments(", ");
        state_ = State::kParameterName;
      } else {
        sink_->OnCallArguments("}");
        sink_->OnCallEnd();
        state_ = State::kCallEnd;
      }
      return Progress::kMoved;
    }
    case State::kCallEnd: {
      ASSIGN_OR_RETURN(const int which, Expect({"\n"}, "behind a call"));
      if (which < 0) return Progress::kNeedsMore;
      state_ = State::kBlock;
      return Progress::kMoved;
    }
    case State::kParameterName: {
      ASSIGN_OR_RETURN(const bool taken, TakeName(kParameterKind, &name_));
      if (!taken) return Progress::kNeedsMore;
      if (!names_.insert(name_).second) {
        return InvalidArgument("tool calls: parameter {} is there twice", Show(name_));
      }
      state_ = State::kParameterKind;
      return Progress::kMoved;
    }
    case State::kParameterKind: {
      ASSIGN_OR_RETURN(const int which, Expect({"true\">", "false\">"}, "in the string attribute"));
      if (which < 0) return Progress::kNeedsMore;
      sink_->OnCallArguments(JsonQuoted(name_) + ": " + (which == 0 ? "\"" : ""));
      searched_ = 0;
      state_ = which == 0 ? State::kString : State::kJson;
      return Progress::kMoved;
    }
    case State::kString: {
      const TagSearch tag = FindTag(pending_, 0, {kParameterEnd});
      std::string escaped;
      AppendJsonEscaped(std::string_view(pending_).substr(0, tag.begin), &escaped);
      if (tag.which) escaped += '"';
      if (!escaped.empty()) sink_->OnCallArguments(escaped);
      pending_.erase(0, tag.begin + (tag.which ? kParameterEnd.size() : 0));
      if (!tag.which) return Progress::kNeedsMore;
      state_ = State::kParameterEnd;
      return Progress::kMoved;
    }
    case State::kJson: {
      // Delivered when it is known to be JSON; until then it is kept, and not searched again.
      const TagSearch tag = FindTag(pending_, searched_, {kParameterEnd});
      searched_ = tag.begin;
      if (!tag.which) return Progress::kNeedsMore;
      const std::string_view value = std::string_view(pending_).substr(0, tag.begin);
      // One level less than what reads the object that it becomes part of.
      const Status is_json = ParseJson(value, {.depth_max = kPythonJsonDepthMax - 1}).status();
      if (!is_json.ok()) return is_json.WithContext(fmt::format("tool calls: parameter {}", Show(name_)));
      sink_->OnCallArguments(value);
      pending_.erase(0, tag.begin + kParameterEnd.size());
      state_ = State::kParameterEnd;
      return Progress::kMoved;
    }
    case State::kParameterEnd: {
      ASSIGN_OR_RETURN(const int which, Expect({"\n"}, "behind a parameter"));
      if (which < 0) return Progress::kNeedsMore;
      state_ = State::kCall;
      return Progress::kMoved;
    }
    case State::kEnd:
      if (!pending_.empty()) {
        return InvalidArgument("tool calls: want the end of the answer behind the block, got {}",
                               Show(pending_));
      }
      return Progress::kNeedsMore;
  }
  return Progress::kNeedsMore;
}

Result<int> OutputParser::Expect(std::initializer_list<std::string_view> alternatives,
                                 std::string_view where) {
  bool may_become_one = false;
  int which = 0;
  for (const std::string_view alternative : alternatives) {
    if (pending_.starts_with(alternative)) {
      pending_.erase(0, alternative.size());
      return which;
    }
    may_become_one = may_become_one || alternative.starts_with(pending_);
    ++which;
  }
  if (may_become_one) return -1;
  std::string want;
  for (const std::string_view alternative : alternatives) {
    want += fmt::format("{}{}", want.empty() ? "" : " or ", JsonQuoted(alternative));
  }
  return InvalidArgument("tool calls: want {} {}, got {}", want, where, Show(pending_));
}

Result<bool> OutputParser::TakeName(std::string_view tag, std::string* name) {
  const size_t end = pending_.find(tag);
  // The same names are refused however the text was cut.
  if (end == std::string::npos ? pending_.size() >= kNameBytesMax + tag.size() + 1 : end > kNameBytesMax) {
    return InvalidArgument("tool calls: a name has more than {} bytes: {}", kNameBytesMax, Show(pending_));
  }
  if (end == std::string::npos) return false;
  *name = pending_.substr(0, end);
  pending_.erase(0, end + tag.size());
  return true;
}

Result<ChatOutput> ParseOutput(std::string_view text, const OutputParserOptions& options) {
  if (const size_t end = text.find(kEosToken); end != std::string_view::npos) {
    if (end + kEosToken.size() < text.size()) {
      return InvalidArgument("want nothing behind the end-of-sequence token, got {} bytes",
                             text.size() - end - kEosToken.size());
    }
    text = text.substr(0, end);
  }
  Collector collector;
  OutputParser parser(options, &collector);
  RETURN_IF_ERROR(parser.Push(text));
  RETURN_IF_ERROR(parser.Finish());
  return std::move(collector.output);
}

}  // namespace foresight
