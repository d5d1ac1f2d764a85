// The tokens and tags of DeepSeek-V4's conversation layout (deepseek-v4-model.md 5.1 to 5.3). The bars are
// U+FF5C; the tokenizer's own two, kBosToken and kEosToken, are in tokenizer/tokenizer.h.
#pragma once

#include <string_view>

namespace foresight {

// Added tokens of the vocabulary.
inline constexpr std::string_view kUserToken = "<｜User｜>";
inline constexpr std::string_view kAssistantToken = "<｜Assistant｜>";
inline constexpr std::string_view kLatestReminderToken = "<｜latest_reminder｜>";
inline constexpr std::string_view kThinkBeginToken = "<think>";
inline constexpr std::string_view kThinkEndToken = "</think>";
inline constexpr std::string_view kDsmlToken = "｜DSML｜";

// Tags of a block of tool calls: text around kDsmlToken.
inline constexpr std::string_view kCallsBegin = "\n\n<｜DSML｜tool_calls";  // ">\n" follows
inline constexpr std::string_view kCallsEnd = "</｜DSML｜tool_calls>";
inline constexpr std::string_view kInvokeBegin = "<｜DSML｜invoke name=\"";  // name, "\">\n"
inline constexpr std::string_view kInvokeEnd = "</｜DSML｜invoke>";
inline constexpr std::string_view kParameterBegin = "<｜DSML｜parameter name=\"";  // name, kParameterKind
inline constexpr std::string_view kParameterKind = "\" string=\"";  // "true\">" or "false\">", value
inline constexpr std::string_view kParameterEnd = "</｜DSML｜parameter>";

}  // namespace foresight
