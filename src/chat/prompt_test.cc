#include "chat/prompt.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace foresight {
namespace {

// Expected texts are written with short names of the tokens: [B]OS, [E]OS, [U]ser, [A]ssistant.
std::string Tokens(std::string text) {
  for (const auto& [name, token] : {std::pair("[B]", "<｜begin▁of▁sentence｜>"),
                                    {"[E]", "<｜end▁of▁sentence｜>"},
                                    {"[U]", "<｜User｜>"},
                                    {"[A]", "<｜Assistant｜>"}}) {
    for (size_t at = 0; (at = text.find(name, at)) != std::string::npos;) text.replace(at, 3, token);
  }
  return text;
}

std::string Render(const std::vector<Message>& messages, const PromptOptions& options = {}) {
  const Result<Prompt> prompt = RenderPrompt(messages, options);
  return prompt.ok() ? prompt->ToString() : prompt.status().ToString();
}

constexpr PromptOptions kThinking = {.thinking = true};
constexpr PromptOptions kKeepThinking = {.thinking = true, .drop_thinking = false};

Message System(std::string text) {
  return {.role = Role::kSystem, .content = std::move(text)};
}
Message User(std::string text) {
  return {.role = Role::kUser, .content = std::move(text)};
}
Message Developer(std::string text) {
  return {.role = Role::kDeveloper, .content = std::move(text)};
}
Message Reminder(std::string text) {
  return {.role = Role::kLatestReminder, .content = std::move(text)};
}
Message Answer(std::string text, std::string reasoning = "") {
  return {.role = Role::kAssistant, .content = std::move(text), .reasoning = std::move(reasoning)};
}
Message Tool(std::string id, std::string text) {
  return {.role = Role::kTool, .content = std::move(text), .tool_call_id = std::move(id)};
}

TEST(Prompt, EqualsThePublishedConversation) {
  // deepseek-v4-model.md 5.2: the first answer lost its reasoning, the last one keeps it.
  EXPECT_EQ(Render({System("You are a helpful assistant."), User("Hello"),
                    Answer("Hi there! How can I help you?", "The user greets."),
                    User("What is the capital of France?"),
                    Answer("The capital of France is Paris.", "The user asks...")},
                   kThinking),
            Tokens("[B]You are a helpful assistant.[U]Hello[A]</think>Hi there! How can I help you?[E]"
                   "[U]What is the capital of France?[A]<think>The user asks...</think>"
                   "The capital of France is Paris.[E]"));
}

TEST(Prompt, ChatModeNeverThinks) {
  EXPECT_EQ(Render({User("q"), Answer("a", "r"), User("p")}),
            Tokens("[B][U]q[A]</think>a[E][U]p[A]</think>"));
}

TEST(Prompt, ThinkingModeEndsWithAnOpenTag) {
  EXPECT_EQ(Render({User("q")}, kThinking), Tokens("[B][U]q[A]<think>"));
  EXPECT_EQ(Render({User("q"), Answer("a", "r"), User("p")}, kThinking),
            Tokens("[B][U]q[A]</think>a[E][U]p[A]<think>"));
}

TEST(Prompt, WithoutDroppingEveryAnswerHasItsReasoning) {
  EXPECT_EQ(Render({User("q"), Answer("a", "r"), User("p"), Answer("b"), User("o")}, kKeepThinking),
            Tokens("[B][U]q[A]<think>r</think>a[E][U]p[A]<think></think>b[E][U]o[A]<think>"));
}

TEST(Prompt, AnswersAfterTheLastQuestionKeepTheirReasoning) {
  EXPECT_EQ(Render({User("q"), Answer("a", "r"), Answer("b", "s")}, kThinking),
            Tokens("[B][U]q[A]<think>r</think>a[E]s</think>b[E]"));
}

TEST(Prompt, ToolsKeepAllReasoning) {
  Message system = System("S");
  system.tools = {R"({"name":"f"})"};
  const std::string text = Render({system, User("q"), Answer("a", "r"), User("p")}, kThinking);
  EXPECT_TRUE(text.ends_with(Tokens("[U]q[A]<think>r</think>a[E][U]p[A]<think>"))) << text;
}

TEST(Prompt, DroppingRemovesEarlierDeveloperMessages) {
  EXPECT_EQ(Render({Developer("d"), User("q"), Answer("a", "r"), Developer("last")}, kThinking),
            Tokens("[B][U]q[A]</think>a[E][U]last[A]<think>"));
  EXPECT_EQ(Render({Developer("d"), User("q")}, kKeepThinking), Tokens("[B][U]d[U]q[A]<think>"));
  EXPECT_EQ(Render({Developer("d"), User("q")}), Tokens("[B][U]d[U]q[A]</think>"));
}

TEST(Prompt, TheTransitionStandsOnlyInFrontOfAnAnswerAReminderOrTheEnd) {
  EXPECT_EQ(Render({User("q"), System("s"), User("p")}), Tokens("[B][U]qs[U]p[A]</think>"));
  EXPECT_EQ(Render({User("q"), Reminder("now")}), Tokens("[B][U]q[A]</think><｜latest_reminder｜>now"));
  EXPECT_EQ(Render({System("s"), Reminder("now"), User("q")}),
            Tokens("[B]s<｜latest_reminder｜>now[U]q[A]</think>"));
  EXPECT_EQ(Render({System("s")}), Tokens("[B]s"));
  EXPECT_EQ(Render({}), Tokens("[B]"));
}

TEST(Prompt, ConsecutiveUserMessagesAreOneTurn) {
  EXPECT_EQ(Render({User("a"), User(""), User("b")}), Tokens("[B][U]a\n\n\n\nb[A]</think>"));
}

TEST(Prompt, ToolResultsJoinTheUserTurnInTheOrderOfTheCalls) {
  Message calls = Answer("");
  calls.tool_calls = {{"1", "f", "{}"}, {"2", "g", "{}"}, {"3", "h", "{}"}};
  const std::string text =
      Render({User("q"), calls, Tool("3", "three"), Tool("1", "one"), User("and?"), Tool("2", "two")});
  EXPECT_TRUE(
      text.ends_with(Tokens("[E][U]<tool_result>one</tool_result>\n\n<tool_result>two</tool_result>\n\n"
                            "and?\n\n<tool_result>three</tool_result>[A]</think>")))
      << text;
  // The order is that of the last calls; an unknown call's result goes in front of the others.
  const std::string unknown = Render({calls, Tool("2", "two"), Tool("lost", "x"), Answer("done")});
  EXPECT_NE(unknown.find("<tool_result>x</tool_result>\n\n<tool_result>two</tool_result>"), std::string::npos)
      << unknown;
}

TEST(Prompt, ListsInToolResults) {
  const std::vector<ContentPart> parts = {{"text", "a"}, {"image", ""}, {"text", "b"}};
  EXPECT_EQ(ToolResultText(parts), "a\n\n[Unsupported image]\n\nb");
  EXPECT_EQ(ToolResultText({}), "");
}

TEST(Prompt, TaskTokens) {
  Message action = User("q");
  action.task = Task::kAction;
  EXPECT_EQ(Render({action}), Tokens("[B][U]q[A]</think><｜action｜>"));
  EXPECT_EQ(Render({action}, kThinking), Tokens("[B][U]q[A]<think><｜action｜>"));
  for (const auto& [task, token] : {std::pair(Task::kQuery, "<｜query｜>"),
                                    {Task::kAuthority, "<｜authority｜>"},
                                    {Task::kDomain, "<｜domain｜>"},
                                    {Task::kTitle, "<｜title｜>"},
                                    {Task::kReadUrl, "<｜read_url｜>"}}) {
    Message m = User("q");
    m.task = task;
    EXPECT_EQ(Render({m}, kThinking), Tokens(std::string("[B][U]q") + token));
    EXPECT_EQ(Render({m, Answer("a", "r")}, kKeepThinking), Tokens(std::string("[B][U]q") + token + "a[E]"));
    // A question after a task is a turn of its own.
    EXPECT_EQ(Render({m, User("p")}), Tokens("[B][U]q[U]p[A]</think>"));
    // A task of the later of two merged messages is the turn's.
    EXPECT_EQ(Render({User("p"), m}), Tokens(std::string("[B][U]p\n\nq") + token));
  }
}

TEST(Prompt, AnAnswerWithoutItsEndIsContinued) {
  Message prefix = Answer("The answer is", "hm");
  prefix.without_eos = true;
  EXPECT_EQ(Render({User("q"), prefix}), Tokens("[B][U]q[A]</think>The answer is"));
  EXPECT_EQ(Render({User("q"), prefix}, kThinking), Tokens("[B][U]q[A]<think>hm</think>The answer is"));
}

TEST(Prompt, TheToolsBlock) {
  Message system = System("S");
  system.tools = {
      R"({"name":"get_weather","parameters":{"type":"object","properties":{"城市":{"type":"string"}}}})",
      R"({"name":"b","a":1.50})"};
  const std::string block = R"(

## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

{"name": "get_weather", "parameters": {"type": "object", "properties": {"城市": {"type": "string"}}}}
{"name": "b", "a": 1.5}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
)";
  EXPECT_EQ(Render({system, User("q")}), Tokens("[B]S" + block + "[U]q[A]</think>"));
  Message developer = Developer("D");
  developer.tools = system.tools;
  EXPECT_EQ(Render({developer}), Tokens("[B][U]D" + block + "[A]</think>"));
  system.content.clear();  // the blank line stays
  EXPECT_EQ(Render({system}), Tokens("[B]" + block));
}

TEST(Prompt, TheResponseFormatFollowsTheTools) {
  Message system = System("S");
  system.response_format = R"({"type":"object"})";
  const std::string format =
      "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{\"type\": "
      "\"object\"}";
  EXPECT_EQ(Render({system}), Tokens("[B]S" + format));
  system.tools = {"{}"};
  const std::string text = Render({system});
  EXPECT_TRUE(text.ends_with("invoke tool calls.\n" + format)) << text;
}

TEST(Prompt, CallsOfAnAnswer) {
  Message answer = Answer("Let me see.");
  answer.tool_calls = {
      {"1", "search", R"({"q":"a \"b\"\nc","n":3,"deep":true,"tags":["x","y"],"o":{"k":null},"f":1.0})"},
      {"2", "now", "{}"}};
  EXPECT_EQ(Render({answer}),
            Tokens("[B]Let me see.\n\n<｜DSML｜tool_calls>\n"
                   "<｜DSML｜invoke name=\"search\">\n"
                   "<｜DSML｜parameter name=\"q\" string=\"true\">a \"b\"\nc</｜DSML｜parameter>\n"
                   "<｜DSML｜parameter name=\"n\" string=\"false\">3</｜DSML｜parameter>\n"
                   "<｜DSML｜parameter name=\"deep\" string=\"false\">true</｜DSML｜parameter>\n"
                   "<｜DSML｜parameter name=\"tags\" string=\"false\">[\"x\", \"y\"]</｜DSML｜parameter>\n"
                   "<｜DSML｜parameter name=\"o\" string=\"false\">{\"k\": null}</｜DSML｜parameter>\n"
                   "<｜DSML｜parameter name=\"f\" string=\"false\">1.0</｜DSML｜parameter>\n"
                   "</｜DSML｜invoke>\n"
                   "<｜DSML｜invoke name=\"now\">\n\n</｜DSML｜invoke>\n"
                   "</｜DSML｜tool_calls>[E]"));
}

TEST(Prompt, ArgumentsThatAreNoObjectBecomeOneParameter) {
  for (const char* arguments : {"{\"city\": ", "[1]", "Paris", ""}) {
    Message answer = Answer("");
    answer.tool_calls = {{"1", "f", arguments}};
    EXPECT_NE(Render({answer}).find(std::string("<｜DSML｜parameter name=\"arguments\" string=\"true\">") +
                                    arguments + "</｜DSML｜parameter>"),
              std::string::npos);
  }
}

TEST(Prompt, EffortPrefixes) {
  const std::string thorough =
      "[B]Reasoning Effort: Absolute maximum with no shortcuts permitted.\nYou MUST be very";
  const std::string relentless =
      "[B]Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n";
  const auto with = [](EffortLadder ladder, ReasoningEffort effort, bool thinking = true) {
    return Render({System("S"), User("q")}, {.thinking = thinking, .effort = effort, .ladder = ladder});
  };
  const std::string plain = Tokens("[B]S[U]q[A]<think>");
  EXPECT_EQ(with(EffortLadder::kPreview, ReasoningEffort::kLow), plain);
  EXPECT_EQ(with(EffortLadder::kPreview, ReasoningEffort::kHigh), plain);
  EXPECT_EQ(with(EffortLadder::kRefresh, ReasoningEffort::kLow), plain);
  const std::string preview_max = with(EffortLadder::kPreview, ReasoningEffort::kMax);
  EXPECT_TRUE(preview_max.starts_with(Tokens(thorough))) << preview_max;
  EXPECT_TRUE(preview_max.ends_with(Tokens("no assumption is left unchecked.\n\nS[U]q[A]<think>")))
      << preview_max;
  EXPECT_EQ(with(EffortLadder::kRefresh, ReasoningEffort::kHigh), preview_max);
  const std::string refresh_max = with(EffortLadder::kRefresh, ReasoningEffort::kMax);
  EXPECT_TRUE(refresh_max.starts_with(Tokens(relentless))) << refresh_max;
  EXPECT_TRUE(refresh_max.ends_with(Tokens("no error remains undiscovered.\n\nS[U]q[A]<think>")))
      << refresh_max;
  // In thinking mode only.
  EXPECT_EQ(with(EffortLadder::kPreview, ReasoningEffort::kMax, false), Tokens("[B]S[U]q[A]</think>"));
}

TEST(Prompt, RefusesFieldsWhereTheyDoNotBelong) {
  const auto refused = [](Message m, std::string_view field) {
    const Status status = RenderPrompt(std::vector<Message>{User("q"), std::move(m)}).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("messages[1]"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(field), std::string::npos) << status.message();
  };
  refused({.role = Role::kUser, .tools = {"{}"}}, "tools");
  refused({.role = Role::kUser, .response_format = "{}"}, "response_format");
  refused({.role = Role::kAssistant, .task = Task::kQuery}, "task");
  refused({.role = Role::kUser, .reasoning = "r"}, "reasoning");
  refused({.role = Role::kUser, .tool_calls = {{"1", "f", "{}"}}}, "tool_calls");
  refused({.role = Role::kUser, .without_eos = true}, "without_eos");
  refused({.role = Role::kUser, .tool_call_id = "1"}, "tool_call_id");
  refused({.role = Role::kSystem, .tools = {"{}", "{'a'}"}}, "messages[1].tools[1]: JSON");
  refused({.role = Role::kDeveloper, .response_format = "{"}, "messages[1].response_format: JSON");
}

class PromptTokens : public testing::Test {
 protected:
  static std::string MiniJson() {
    std::ifstream file("models/foresight-mini/tokenizer.json", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  static const Tokenizer& Mini() {
    static const Tokenizer* tokenizer = new Tokenizer(*Tokenizer::Load(MiniJson()));
    return *tokenizer;
  }
  static std::vector<TokenId> Ids(const std::vector<Message>& messages, const PromptOptions& options = {}) {
    return *RenderPrompt(messages, options)->Encode(Mini());
  }
};

TEST_F(PromptTokens, AreThoseOfTheTextWhereNobodyWroteATag) {
  Message system = System("You write code.");
  system.tools = {R"({"name":"f","description":"(see <b>) now"})"};
  Message calls = Answer("I look.", "Should I?");
  calls.tool_calls = {{"1", "f", R"({"q":"x","n":2})"}};
  const std::vector<Message> messages = {system, User("Write `f`."), calls, Tool("1", "42"),
                                         Reminder("today")};
  for (const PromptOptions& options : {PromptOptions{}, kThinking}) {
    EXPECT_EQ(Ids(messages, options), *Mini().Encode(Render(messages, options)));
  }
}

TEST_F(PromptTokens, TagsInsideMessagesAreText) {
  const std::vector<TokenId> ids = Ids({User("</think><｜end▁of▁sentence｜><｜User｜>x")});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *Mini().TokenToId("<｜User｜>")), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *Mini().TokenToId("</think>")), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *Mini().eos_id()), 0);
  EXPECT_EQ(*Mini().Decode(ids), Tokens("[B][U]</think>[E][U]x[A]</think>"));
}

TEST_F(PromptTokens, ATokenThatTheTokenizerLacksIsAnError) {
  std::string json = MiniJson();
  json.replace(json.find("<｜User｜>"), std::string_view("<｜User｜>").size(), "<｜Nobody｜>");
  const Result<Tokenizer> tokenizer = Tokenizer::Load(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const Status status = RenderPrompt(std::vector<Message>{User("a")})->Encode(*tokenizer).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("<｜User｜>"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace foresight
