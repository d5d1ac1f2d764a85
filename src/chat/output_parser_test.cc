#include "chat/output_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/json.h"
#include "chat/prompt.h"

namespace foresight {
namespace {

constexpr OutputParserOptions kThinkingWithTools = {.in_reasoning = true, .parse_tool_calls = true};
constexpr OutputParserOptions kWithTools = {.parse_tool_calls = true};

// Joins what comes, and sees to the order of the events.
class Joiner : public OutputSink {
 public:
  void OnReasoning(std::string_view text) override {
    EXPECT_TRUE(output.content.empty() && output.tool_calls.empty());
    output.reasoning += text;
  }
  void OnContent(std::string_view text) override {
    EXPECT_TRUE(output.tool_calls.empty());
    output.content += text;
  }
  void OnCallBegin(std::string_view name) override {
    EXPECT_FALSE(in_call);
    in_call = true;
    output.tool_calls.push_back({"", std::string(name), ""});
  }
  void OnCallArguments(std::string_view fragment) override {
    EXPECT_TRUE(in_call);
    output.tool_calls.back().arguments += fragment;
  }
  void OnCallEnd() override {
    EXPECT_TRUE(in_call);
    in_call = false;
  }

  ChatOutput output;
  bool in_call = false;
};

std::string Block(const std::string& inside) {
  return "\n\n<｜DSML｜tool_calls>\n" + inside + "</｜DSML｜tool_calls>";
}
std::string Invoke(const std::string& name, const std::string& inside) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + inside + "</｜DSML｜invoke>\n";
}
std::string Parameter(const std::string& name, bool is_string, const std::string& value) {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + (is_string ? "true" : "false") + "\">" +
         value + "</｜DSML｜parameter>\n";
}

// Parses the text whole and cut in two at every byte, and in single bytes: all must be the same.
Result<ChatOutput> Parse(const std::string& text, const OutputParserOptions& options) {
  Result<ChatOutput> whole = ParseOutput(text, options);
  const auto parse_pieces = [&](const std::vector<std::string>& pieces) {
    Joiner joiner;
    OutputParser parser(options, &joiner);
    Status status;
    for (const std::string& piece : pieces) {
      if (status.ok()) status = parser.Push(piece);
    }
    if (status.ok()) status = parser.Finish();
    EXPECT_EQ(status.code(), whole.status().code()) << text;
    if (!whole.ok()) return;
    EXPECT_EQ(joiner.output, *whole) << text;
    EXPECT_FALSE(joiner.in_call);
  };
  std::vector<std::string> bytes;
  for (const char c : text) bytes.emplace_back(1, c);
  parse_pieces(bytes);
  for (size_t cut = 0; cut <= text.size(); ++cut) parse_pieces({text.substr(0, cut), text.substr(cut)});
  return whole;
}

ChatOutput Parsed(const std::string& text, const OutputParserOptions& options) {
  const Result<ChatOutput> output = Parse(text, options);
  EXPECT_TRUE(output.ok()) << output.status().ToString();
  return output.ok() ? *output : ChatOutput();
}

TEST(OutputParser, ReasoningEndsAtItsTag) {
  EXPECT_EQ(Parsed("Hm <thin </think>Yes.", kThinkingWithTools), (ChatOutput{"Hm <thin ", "Yes.", {}}));
  EXPECT_EQ(Parsed("</think>Yes.", {.in_reasoning = true}), (ChatOutput{"", "Yes.", {}}));
}

TEST(OutputParser, ReasoningThatTheLimitCutIsReasoning) {
  EXPECT_EQ(Parsed("Hm, let me </th", {.in_reasoning = true}), (ChatOutput{"Hm, let me </th", "", {}}));
}

TEST(OutputParser, ContentIsEverythingWithoutATag) {
  EXPECT_EQ(Parsed("a</think>b\n\n<｜DSML", kWithTools), (ChatOutput{"", "a</think>b\n\n<｜DSML", {}}));
  EXPECT_EQ(Parsed("", kWithTools), ChatOutput());
}

TEST(OutputParser, WithoutToolsABlockIsContent) {
  const std::string text = "x" + Block(Invoke("f", "\n"));
  EXPECT_EQ(Parsed(text, {}), (ChatOutput{"", text, {}}));
  EXPECT_EQ(Parsed(text, {.in_reasoning = true}), (ChatOutput{text, "", {}}));
}

TEST(OutputParser, CallsBecomeJsonInTheOrderOfAppearance) {
  const std::string text =
      "Why?</think>I look." +
      Block(Invoke("search", Parameter("q", true, "a \"b\"\n<c>\\ 你好\x01") + Parameter("n", false, "3") +
                                 Parameter("o", false, "{\"k\": [1, 2.50]}")) +
            Invoke("now", "\n") + Invoke("later", ""));
  EXPECT_EQ(
      Parsed(text, kThinkingWithTools),
      (ChatOutput{"Why?",
                  "I look.",
                  {{"", "search", R"({"q": "a \"b\"\n<c>\\ 你好\u0001", "n": 3, "o": {"k": [1, 2.50]}})"},
                   {"", "now", "{}"},
                   {"", "later", "{}"}}}));
}

TEST(OutputParser, AStringMayHoldAnythingButItsClosingTag) {
  const std::string value = "</｜DSML｜invoke>\n</｜DSML｜parameter\n\n<｜DSML｜tool_calls>\n</think>";
  const ChatOutput output = Parsed(Block(Invoke("f", Parameter("x", true, value))), kWithTools);
  ASSERT_EQ(output.tool_calls.size(), 1u);
  EXPECT_EQ(ParseJson(output.tool_calls[0].arguments)->at("x").as_string(), value);
}

TEST(OutputParser, TheLastBlankLineBelongsToTheBlock) {
  EXPECT_EQ(Parsed("x\n" + Block(""), kWithTools), (ChatOutput{"", "x\n", {}}));
  // Not a block without it.
  const std::string text = "x\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>";
  EXPECT_EQ(Parsed(text, kWithTools), (ChatOutput{"", text, {}}));
}

TEST(OutputParser, CallsMayFollowUnclosedReasoning) {
  EXPECT_EQ(Parsed("Hm." + Block(Invoke("f", "\n")), kThinkingWithTools),
            (ChatOutput{"Hm.", "", {{"", "f", "{}"}}}));
}

TEST(OutputParser, OnlyTheEndTokenMayFollow) {
  const std::string block = Block(Invoke("f", "\n"));
  const std::string eos(kEosToken);
  EXPECT_EQ(ParseOutput("a" + block + eos, kWithTools)->tool_calls.size(), 1u);
  EXPECT_EQ(ParseOutput("a" + eos, kWithTools)->content, "a");
  for (const std::string& bad : {"a" + eos + "b", block + eos + "\n"}) {
    EXPECT_EQ(ParseOutput(bad, kWithTools).status().code(), StatusCode::kInvalidArgument);
  }
  EXPECT_NE(Parse(block + "\n", kWithTools).status().message().find("behind the block"), std::string::npos);
}

TEST(OutputParser, RefusesBlocksThatAreNotAsTheFormatDemands) {
  const std::string parameter = Parameter("x", true, "1");
  const std::string good = Block(Invoke("f", parameter));
  ASSERT_TRUE(Parse(good, kWithTools).ok());
  const auto damaged = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  for (const std::string& bad : {
           damaged("calls>\n<", "calls><"),
           damaged("calls>\n<", "calls>\n\n<"),
           damaged("invoke name=", "invoke  name="),
           damaged("\"f\">\n", "\"f\"> "),
           damaged("string=\"true\"", "string=\"maybe\""),
           damaged("string=\"true\"", "type=\"x\""),
           damaged("parameter>\n", "parameter>"),
           damaged("parameter>\n", "parameter> \n"),
           damaged("invoke>\n", "invoke>"),
           damaged("</｜DSML｜invoke>", "</invoke>"),
           damaged("</｜DSML｜tool_calls>", ""),
           Block(Invoke("f", parameter + parameter)),
           Block(Invoke("f", Parameter("x", false, "yes"))),
           Block(Invoke("f", Parameter("x", false, ""))),
           Block(Invoke("f", Parameter("x", false, std::string(64, '[') + std::string(64, ']')))),
           Block(Invoke(std::string(OutputParser::kNameBytesMax + 1, 'f'), "\n")),
           Block("text"),
           good.substr(0, good.size() - 1),
       }) {
    const Status status = Parse(bad, kWithTools).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status.message().find("tool calls: "), std::string::npos) << status.message();
  }
  EXPECT_TRUE(Parse(Block(Invoke(std::string(OutputParser::kNameBytesMax, 'f'), "\n")), kWithTools).ok());
}

TEST(OutputParser, AnErrorStays) {
  Joiner joiner;
  OutputParser parser(kWithTools, &joiner);
  ASSERT_TRUE(parser.Push("text\n\n<｜DSML｜tool_calls>\n").ok());
  EXPECT_TRUE(parser.in_calls());
  const Status error = parser.Push("?");
  EXPECT_EQ(error.message(), parser.Push("x").message());
  EXPECT_EQ(error.message(), parser.Finish().message());
  EXPECT_EQ(joiner.output.content, "text");  // what was delivered stays
}

TEST(OutputParser, DeliversAsSoonAsNothingMayBeATag) {
  Joiner joiner;
  OutputParser parser(kThinkingWithTools, &joiner);
  ASSERT_TRUE(parser.Push("Let me see <").ok());
  EXPECT_EQ(joiner.output.reasoning, "Let me see ");
  EXPECT_TRUE(parser.in_reasoning());
  ASSERT_TRUE(parser.Push("b></think>So\n").ok());
  EXPECT_FALSE(parser.in_reasoning());
  EXPECT_EQ(joiner.output.content, "So");
  ASSERT_TRUE(parser.Push("\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n").ok());
  EXPECT_EQ(joiner.output.tool_calls.size(), 1u);
  ASSERT_TRUE(parser.Push("<｜DSML｜parameter name=\"x\" string=\"true\">half of").ok());
  EXPECT_EQ(joiner.output.tool_calls[0].arguments, "{\"x\": \"half of");
}

// What the layout writes, the parser reads.
TEST(OutputParser, ReadsWhatThePromptWrites) {
  Message answer{.role = Role::kAssistant, .content = "I look.", .reasoning = "Should I?\nYes."};
  answer.tool_calls = {{"", "search", R"({"q": "a\tb", "n": [1, {"x": null}], "é": 1e-05})"},
                       {"", "now", "{}"}};
  const Message question{.role = Role::kUser, .content = "q"};
  const std::string prompt = RenderPrompt(std::vector{question}, {.thinking = true})->ToString();
  const std::string text = RenderPrompt(std::vector{question, answer}, {.thinking = true})->ToString();
  ASSERT_TRUE(text.starts_with(prompt));
  const Result<ChatOutput> output = ParseOutput(text.substr(prompt.size()), kThinkingWithTools);
  ASSERT_TRUE(output.ok()) << output.status().ToString();
  EXPECT_EQ(*output, (ChatOutput{answer.reasoning, answer.content, answer.tool_calls}));
}

}  // namespace
}  // namespace foresight
