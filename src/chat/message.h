// A conversation as clients state it, before it becomes a prompt.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace foresight {

enum class Role : uint8_t { kSystem, kUser, kAssistant, kTool, kDeveloper, kLatestReminder };

// A small job with an answer of a fixed form, asked for by a token of its own instead of an assistant's turn.
enum class Task : uint8_t { kAction, kQuery, kAuthority, kDomain, kTitle, kReadUrl };

struct ToolCall {
  std::string id;         // what a tool message refers to; not part of the prompt
  std::string name;       // of the function
  std::string arguments;  // JSON text of an object
  bool operator==(const ToolCall&) const = default;
};

struct Message {
  Role role = Role::kUser;
  std::string content = {};

  // Of system and developer messages.
  std::vector<std::string> tools = {};  // JSON text of each function object (name, description, parameters)
  std::optional<std::string> response_format = {};  // JSON text of the schema that answers must follow

  // Of user and developer messages.
  std::optional<Task> task = {};

  // Of assistant messages.
  std::string reasoning = {};
  std::vector<ToolCall> tool_calls = {};
  bool without_eos = false;  // the turn goes on: the model continues `content`

  // Of tool messages.
  std::string tool_call_id = {};  // any text; results whose call is unknown stay in front
};

// One part of a tool result that a client sent as a list.
struct ContentPart {
  std::string type;
  std::string text;  // of type "text"
};

// The content of a tool message: text parts joined by blank lines; of any other part the prompt says that it
// is there.
std::string ToolResultText(std::span<const ContentPart> parts);

}  // namespace foresight
