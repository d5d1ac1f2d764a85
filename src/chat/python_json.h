// JSON as Python's json.dumps(value, ensure_ascii=False) writes it: the form in which DeepSeek-V4 saw tool
// schemas and calls in training (deepseek-v4-model.md 5.3). Other spaces or another key order cost quality
// and cached prefixes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace foresight {

inline constexpr int kPythonJsonDepthMax = 64;  // nested arrays and objects

// What json.dumps(json.loads(text), ensure_ascii=False) gives: separators ", " and ": ", keys in the order
// received (of equal keys the first one's place and the last one's value), integers of any length as they
// are, fractions in the shortest form that reads back the same. Errors: kInvalidArgument with the byte offset
// (not strict JSON: NaN and lone surrogates are not; too deep).
Result<std::string> PythonJson(std::string_view text);

// One member of an object: a string as it is, without quotes and escapes, or any other value as PythonJson.
struct JsonMember {
  std::string key;
  bool is_string = false;
  std::string value;

  bool operator==(const JsonMember&) const = default;
};

// The members of one object. Errors: those of PythonJson; kInvalidArgument when the text is not an object.
Result<std::vector<JsonMember>> PythonJsonMembers(std::string_view text);

// Appends text with what a JSON string must escape escaped, without the quotes. Bytes that are not ASCII pass
// through, so that a string may be escaped in pieces.
void AppendJsonEscaped(std::string_view text, std::string* out);

// "text" as a JSON string.
std::string JsonQuoted(std::string_view text);

}  // namespace foresight
