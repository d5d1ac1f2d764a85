#include "chat/prompt.h"

#include <algorithm>
#include <array>
#include <optional>
#include <unordered_map>
#include <utility>

#include "chat/markup.h"
#include "chat/python_json.h"

namespace foresight {
namespace {

constexpr std::string_view kToolsBeforeSchemas = R"(## Tools

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

)";

constexpr std::string_view kToolsAfterSchemas = R"(

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
)";

constexpr std::string_view kResponseFormat =
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

constexpr std::string_view kThorough =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the "
    "root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial "
    "scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

constexpr std::string_view kRelentless =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively "
    "decompose the "
    "problem into its most fundamental components, trace every causal chain to its root, and resolve the "
    "underlying "
    "cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are "
    "certain that "
    "no assumption remains unchecked and no error remains undiscovered.\n\n";

constexpr std::array kTokens = {kBosToken,
                                kEosToken,
                                kUserToken,
                                kAssistantToken,
                                kThinkBeginToken,
                                kThinkEndToken,
                                kDsmlToken,
                                kLatestReminderToken,
                                std::string_view("<｜action｜>"),
                                std::string_view("<｜query｜>"),
                                std::string_view("<｜authority｜>"),
                                std::string_view("<｜domain｜>"),
                                std::string_view("<｜title｜>"),
                                std::string_view("<｜read_url｜>")};

std::string_view TaskToken(Task task) {
  switch (task) {
    case Task::kAction:
      return "<｜action｜>";
    case Task::kQuery:
      return "<｜query｜>";
    case Task::kAuthority:
      return "<｜authority｜>";
    case Task::kDomain:
      return "<｜domain｜>";
    case Task::kTitle:
      return "<｜title｜>";
    case Task::kReadUrl:
      return "<｜read_url｜>";
  }
  return "";
}

std::string_view EffortPrefix(const PromptOptions& options) {
  if (!options.thinking || options.effort == ReasoningEffort::kLow) return "";
  const bool is_max = options.effort == ReasoningEffort::kMax;
  switch (options.ladder) {
    case EffortLadder::kPreview:
      return is_max ? kThorough : "";
    case EffortLadder::kRefresh:
      return is_max ? kRelentless : kThorough;
  }
  return "";
}

// One turn of the prompt: a message, or the user and tool messages that are one turn together.
struct Turn {
  std::vector<const Message*> parts;  // more than one only of a user's turn
  size_t index;                       // of the first part among the messages, for errors
  std::optional<Task> task;

  const Message& message() const { return *parts[0]; }
  // Tool results are part of what the model takes for the user's turn.
  Role role() const { return message().role == Role::kTool ? Role::kUser : message().role; }
  bool asks() const { return role() == Role::kUser || role() == Role::kDeveloper; }
};

Status CheckFields(const Message& m, size_t index) {
  const auto allow = [&](bool is_set, bool belongs, std::string_view field, std::string_view roles) {
    if (!is_set || belongs) return Status();
    return InvalidArgument("messages[{}]: {} belongs to {} messages only", index, field, roles);
  };
  const bool instructs = m.role == Role::kSystem || m.role == Role::kDeveloper;
  const bool asks = m.role == Role::kUser || m.role == Role::kDeveloper;
  const bool answers = m.role == Role::kAssistant;
  RETURN_IF_ERROR(allow(!m.tools.empty(), instructs, "tools", "system and developer"));
  RETURN_IF_ERROR(allow(m.response_format.has_value(), instructs, "response_format", "system and developer"));
  RETURN_IF_ERROR(allow(m.task.has_value(), asks, "task", "user and developer"));
  RETURN_IF_ERROR(allow(!m.reasoning.empty(), answers, "reasoning", "assistant"));
  RETURN_IF_ERROR(allow(!m.tool_calls.empty(), answers, "tool_calls", "assistant"));
  RETURN_IF_ERROR(allow(m.without_eos, answers, "without_eos", "assistant"));
  return allow(!m.tool_call_id.empty(), m.role == Role::kTool, "tool_call_id", "tool");
}

// Consecutive user and tool messages make one turn; a user message after a task begins a new one.
std::vector<Turn> MergeTurns(std::span<const Message> messages) {
  std::vector<Turn> turns;
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& m = messages[i];
    const bool joins = !turns.empty() && turns.back().role() == Role::kUser &&
                       (m.role == Role::kTool || (m.role == Role::kUser && !turns.back().task));
    if (joins) {
      turns.back().parts.push_back(&m);
      if (m.task) turns.back().task = m.task;
    } else {
      turns.push_back({{&m}, i, m.task});
    }
  }
  return turns;
}

// Tool results in the order of the calls that they answer, in the places where results are; other parts stay.
void OrderToolResults(std::vector<Turn>* turns) {
  std::unordered_map<std::string_view, size_t> order;  // call id -> its place
  for (Turn& turn : *turns) {
    if (turn.role() == Role::kAssistant && !turn.message().tool_calls.empty()) {
      order.clear();
      const std::vector<ToolCall>& calls = turn.message().tool_calls;
      for (size_t i = 0; i < calls.size(); ++i) order.emplace(calls[i].id, i);
    } else if (turn.role() == Role::kUser) {
      std::vector<const Message*> results;
      for (const Message* part : turn.parts) {
        if (part->role == Role::kTool) results.push_back(part);
      }
      const auto place = [&](const Message* result) {
        const auto found = order.find(result->tool_call_id);
        return found == order.end() ? 0 : found->second;
      };
      std::stable_sort(results.begin(), results.end(),
                       [&](const Message* a, const Message* b) { return place(a) < place(b); });
      auto next = results.begin();
      for (const Message*& part : turn.parts) {
        if (part->role == Role::kTool) part = *next++;
      }
    }
  }
}

class Renderer {
 public:
  Renderer(std::vector<Turn> turns, const PromptOptions& options)
      : turns_(std::move(turns)), thinking_(options.thinking) {
    const bool has_tools = std::any_of(turns_.begin(), turns_.end(),
                                       [](const Turn& turn) { return !turn.message().tools.empty(); });
    drop_thinking_ = options.drop_thinking && !has_tools;
    last_question_ = LastQuestion();
    if (thinking_ && drop_thinking_) {
      const auto before = turns_.begin() + std::max<int64_t>(last_question_, 0);
      turns_.erase(std::remove_if(turns_.begin(), before,
                                  [](const Turn& turn) { return turn.role() == Role::kDeveloper; }),
                   before);
      last_question_ = LastQuestion();
    }
  }

  Result<Prompt> Run(std::string_view effort_prefix) {
    prompt_.AddLayout(kBosToken);
    prompt_.AddLayout(effort_prefix);
    for (size_t i = 0; i < turns_.size(); ++i) {
      RETURN_IF_ERROR(AddTurn(i));
      AddTransition(i);
    }
    return std::move(prompt_);
  }

 private:
  int64_t LastQuestion() const {
    const auto last =
        std::find_if(turns_.rbegin(), turns_.rend(), [](const Turn& turn) { return turn.asks(); });
    return turns_.rend() - last - 1;  // -1: there is none
  }

  Status AddTurn(size_t i) {
    const Turn& turn = turns_[i];
    const Message& m = turn.message();
    switch (turn.role()) {
      case Role::kSystem:
        prompt_.AddText(m.content);
        return AddInstructions(m, turn.index);
      case Role::kDeveloper:
        prompt_.AddLayout(kUserToken);
        prompt_.AddText(m.content);
        return AddInstructions(m, turn.index);
      case Role::kLatestReminder:
        prompt_.AddLayout(kLatestReminderToken);
        prompt_.AddText(m.content);
        return Status();
      case Role::kUser:
      case Role::kTool:
        AddUser(turn);
        return Status();
      case Role::kAssistant:
        AddAssistant(i);
        return Status();
    }
    return Status();
  }

  Status AddInstructions(const Message& m, size_t index) {
    if (!m.tools.empty()) {
      prompt_.AddLayout("\n\n");
      prompt_.AddLayout(kToolsBeforeSchemas);
      for (size_t i = 0; i < m.tools.size(); ++i) {
        const Result<std::string> schema = PythonJson(m.tools[i]);
        if (!schema.ok()) return schema.status().WithContext(fmt::format("messages[{}].tools[{}]", index, i));
        if (i > 0) prompt_.AddLayout("\n");
        prompt_.AddText(*schema);
      }
      prompt_.AddLayout(kToolsAfterSchemas);
    }
    if (m.response_format) {
      const Result<std::string> schema = PythonJson(*m.response_format);
      if (!schema.ok())
        return schema.status().WithContext(fmt::format("messages[{}].response_format", index));
      prompt_.AddLayout("\n\n");
      prompt_.AddLayout(kResponseFormat);
      prompt_.AddText(*schema);
    }
    return Status();
  }

  void AddUser(const Turn& turn) {
    prompt_.AddLayout(kUserToken);
    for (size_t i = 0; i < turn.parts.size(); ++i) {
      const Message& part = *turn.parts[i];
      if (i > 0) prompt_.AddLayout("\n\n");
      if (part.role == Role::kTool) prompt_.AddLayout("<tool_result>");
      prompt_.AddText(part.content);
      if (part.role == Role::kTool) prompt_.AddLayout("</tool_result>");
    }
  }

  void AddAssistant(size_t i) {
    const Message& m = turns_[i].message();
    const bool answers_task = i > 0 && turns_[i - 1].task;
    if (thinking_ && !answers_task && (!drop_thinking_ || static_cast<int64_t>(i) > last_question_)) {
      prompt_.AddText(m.reasoning);
      prompt_.AddLayout(kThinkEndToken);
    }
    prompt_.AddText(m.content);
    if (!m.tool_calls.empty()) AddCalls(m.tool_calls);
    if (!m.without_eos) prompt_.AddLayout(kEosToken);
  }

  void AddCalls(std::span<const ToolCall> calls) {
    prompt_.AddLayout(kCallsBegin);
    prompt_.AddLayout(">\n");
    for (const ToolCall& call : calls) {
      prompt_.AddLayout(kInvokeBegin);
      prompt_.AddText(call.name);
      prompt_.AddLayout("\">\n");
      // Arguments that a client mangled still reach the model, as one text.
      const auto parsed = PythonJsonMembers(call.arguments);
      const std::vector<JsonMember> members =
          parsed.ok() ? *parsed : std::vector<JsonMember>{{"arguments", true, call.arguments}};
      for (size_t i = 0; i < members.size(); ++i) {
        if (i > 0) prompt_.AddLayout("\n");
        prompt_.AddLayout(kParameterBegin);
        prompt_.AddText(members[i].key);
        prompt_.AddLayout(kParameterKind);
        prompt_.AddLayout(members[i].is_string ? "true\">" : "false\">");
        prompt_.AddText(members[i].value);
        prompt_.AddLayout(kParameterEnd);
      }
      prompt_.AddLayout("\n");
      prompt_.AddLayout(kInvokeEnd);
      prompt_.AddLayout("\n");
    }
    prompt_.AddLayout(kCallsEnd);
  }

  // What stands between a question and its answer, where an answer follows or is to be written.
  void AddTransition(size_t i) {
    const Turn& turn = turns_[i];
    if (i + 1 < turns_.size()) {
      const Role next = turns_[i + 1].role();
      if (next != Role::kAssistant && next != Role::kLatestReminder) return;
    }
    if (!turn.asks()) return;
    if (turn.task && *turn.task != Task::kAction) return prompt_.AddLayout(TaskToken(*turn.task));
    const bool thinks =
        turn.task ? thinking_ : thinking_ && (!drop_thinking_ || static_cast<int64_t>(i) >= last_question_);
    prompt_.AddLayout(kAssistantToken);
    prompt_.AddLayout(thinks ? kThinkBeginToken : kThinkEndToken);
    if (turn.task) prompt_.AddLayout(TaskToken(*turn.task));
  }

  std::vector<Turn> turns_;
  bool thinking_;
  bool drop_thinking_;
  int64_t last_question_;  // the last user or developer turn
  Prompt prompt_;
};

}  // namespace

std::string ToolResultText(std::span<const ContentPart> parts) {
  std::string text;
  for (const ContentPart& part : parts) {
    if (&part != parts.data()) text += "\n\n";
    text += part.type == "text" ? part.text : fmt::format("[Unsupported {}]", part.type);
  }
  return text;
}

void Prompt::AddText(std::string_view text) {
  if (text.empty()) return;
  if (pieces_.empty() || pieces_.back().is_token) pieces_.push_back({false, ""});
  pieces_.back().text += text;
}

void Prompt::AddLayout(std::string_view text) {
  while (!text.empty()) {
    size_t begin = std::string_view::npos;
    std::string_view first;
    for (const std::string_view token : kTokens) {
      if (const size_t at = text.find(token); at < begin) {
        begin = at;
        first = token;
      }
    }
    AddText(text.substr(0, begin));
    if (begin == std::string_view::npos) return;
    pieces_.push_back({true, std::string(first)});
    text.remove_prefix(begin + first.size());
  }
}

std::string Prompt::ToString() const {
  std::string text;
  for (const Piece& piece : pieces_) text += piece.text;
  return text;
}

Result<std::vector<TokenId>> Prompt::Encode(const Tokenizer& tokenizer) const {
  std::vector<TokenId> ids;
  for (const Piece& piece : pieces_) {
    if (piece.is_token) {
      const std::optional<TokenId> id = tokenizer.TokenToId(piece.text);
      if (!id) return InvalidArgument("the tokenizer has no token {}, which the prompt needs", piece.text);
      ids.push_back(*id);
    } else {
      ASSIGN_OR_RETURN(const std::vector<TokenId> part,
                       tokenizer.Encode(piece.text, {.match_added_tokens = false}));
      ids.insert(ids.end(), part.begin(), part.end());
    }
  }
  return ids;
}

Result<Prompt> RenderPrompt(std::span<const Message> messages, const PromptOptions& options) {
  for (size_t i = 0; i < messages.size(); ++i) RETURN_IF_ERROR(CheckFields(messages[i], i));
  std::vector<Turn> turns = MergeTurns(messages);
  OrderToolResults(&turns);
  return Renderer(std::move(turns), options).Run(EffortPrefix(options));
}

}  // namespace foresight
