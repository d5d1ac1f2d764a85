#include "chat/python_json.h"

#include <array>
#include <boost/json/basic_parser_impl.hpp>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

namespace foresight {
namespace {

namespace json = boost::json;

std::string_view View(json::string_view s) {
  return {s.data(), s.size()};
}

// repr() of a float, with json's names for what is not finite.
std::string PythonFloat(double value) {
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  std::array<char, 64> buffer;
  const auto print = [&](std::chars_format format) {
    return std::string(buffer.data(),
                       std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format).ptr);
  };
  if (value == 0) return std::signbit(value) ? "-0.0" : "0.0";
  std::string scientific = print(std::chars_format::scientific);
  int exponent = 0;
  const char* digits = scientific.data() + scientific.find('e') + 1;
  std::from_chars(*digits == '+' ? digits + 1 : digits, scientific.data() + scientific.size(), exponent);
  if (exponent < -4 || exponent >= 16) return scientific;
  std::string fixed = print(std::chars_format::fixed);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

// A value that has been read to its end.
struct Value {
  bool is_string = false;
  std::string text;  // of a string: its characters; of anything else: its JSON

  std::string Json() const { return is_string ? JsonQuoted(text) : text; }
};

// Receives the parser's events. Works on the text of numbers, which no document model would keep.
class Writer {
 public:
  static constexpr size_t max_object_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_array_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_key_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_string_size = std::numeric_limits<size_t>::max();

  Value root;
  bool root_is_object = false;
  std::vector<JsonMember> root_members;  // when the root is an object

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code&) {
    open_.emplace_back();
    return true;
  }
  bool on_object_end(size_t, json::error_code&) {
    Container object = std::move(open_.back());
    open_.pop_back();
    std::string text = "{";
    for (const auto& [key, value] : object.members) {
      if (text.size() > 1) text += ", ";
      text += JsonQuoted(key) + ": " + value.Json();
    }
    if (open_.empty()) {
      root_is_object = true;
      for (auto& [key, value] : object.members) {
        root_members.push_back({std::move(key), value.is_string, std::move(value.text)});
      }
    }
    return Add({false, text + '}'});
  }
  bool on_array_begin(json::error_code&) {
    open_.emplace_back();
    return true;
  }
  bool on_array_end(size_t, json::error_code&) {
    const Container array = std::move(open_.back());
    open_.pop_back();
    std::string text = "[";
    for (const auto& [key, value] : array.members) {
      if (text.size() > 1) text += ", ";
      text += value.Json();
    }
    return Add({false, text + ']'});
  }
  bool on_key_part(json::string_view part, size_t, json::error_code&) { return Append(part); }
  bool on_key(json::string_view part, size_t, json::error_code&) {
    Append(part);
    Container& object = open_.back();
    // As in a Python dict: a repeated key keeps its place and takes the later value.
    const auto [found, is_new] = object.places.try_emplace(pending_, object.members.size());
    if (is_new) object.members.emplace_back(pending_, Value());
    object.next = found->second;
    pending_.clear();
    return true;
  }
  bool on_string_part(json::string_view part, size_t, json::error_code&) { return Append(part); }
  bool on_string(json::string_view part, size_t, json::error_code&) {
    Append(part);
    return Add({true, std::exchange(pending_, {})});
  }
  bool on_number_part(json::string_view part, json::error_code&) { return Append(part); }
  bool on_int64(int64_t, json::string_view part, json::error_code&) { return AddNumber(part, 0); }
  bool on_uint64(uint64_t, json::string_view part, json::error_code&) { return AddNumber(part, 0); }
  bool on_double(double value, json::string_view part, json::error_code&) { return AddNumber(part, value); }
  bool on_bool(bool value, json::error_code&) { return Add({false, value ? "true" : "false"}); }
  bool on_null(json::error_code&) { return Add({false, "null"}); }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  struct Container {  // an array's keys are empty
    std::vector<std::pair<std::string, Value>> members;
    std::unordered_map<std::string, size_t> places;  // key -> index of its member
    std::optional<size_t> next;                      // the member that the next value belongs to
  };

  bool Append(json::string_view part) {
    pending_ += View(part);
    return true;
  }
  bool AddNumber(json::string_view part, double approximate) {
    Append(part);
    std::string text = std::exchange(pending_, {});
    if (text.find_first_of(".eE") == std::string::npos) {
      return Add({false, text == "-0" ? "0" : std::move(text)});  // an int has no negative zero
    }
    // The parser's value may be off by a unit in the last place; it does where the range of a double ends.
    double value = approximate;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return Add({false, PythonFloat(value)});
  }
  bool Add(Value value) {
    if (open_.empty()) {
      root = std::move(value);
    } else if (Container& parent = open_.back(); parent.next) {
      parent.members[*std::exchange(parent.next, std::nullopt)].second = std::move(value);
    } else {
      parent.members.emplace_back(std::string(), std::move(value));
    }
    return true;
  }

  std::vector<Container> open_;
  std::string pending_;  // the parts so far of a key, string or number
};

Result<Writer> Read(std::string_view text) {
  json::parse_options options;
  options.max_depth = kPythonJsonDepthMax;
  json::basic_parser<Writer> parser(options);
  json::error_code error;
  const size_t offset = parser.write_some(/*more=*/false, text.data(), text.size(), error);
  if (error == json::error::incomplete) {
    return InvalidArgument("JSON: the text ends too early, at byte {}", text.size());
  }
  if (error == json::error::too_deep) {
    return InvalidArgument("JSON: more than {} nested levels at byte {}", kPythonJsonDepthMax, offset);
  }
  if (error) return InvalidArgument("JSON: {} at byte {}", error.message(), offset);
  if (offset < text.size()) return InvalidArgument("JSON: more text after the value, at byte {}", offset);
  return std::move(parser.handler());
}

}  // namespace

void AppendJsonEscaped(std::string_view text, std::string* out) {
  for (const char c : text) {
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\b':
        *out += "\\b";
        break;
      case '\f':
        *out += "\\f";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          *out += fmt::format("\\u{:04x}", static_cast<int>(c));
        } else {
          *out += c;
        }
    }
  }
}

std::string JsonQuoted(std::string_view text) {
  std::string out = "\"";
  AppendJsonEscaped(text, &out);
  return out + '"';
}

Result<std::string> PythonJson(std::string_view text) {
  ASSIGN_OR_RETURN(const Writer writer, Read(text));
  return writer.root.Json();
}

Result<std::vector<JsonMember>> PythonJsonMembers(std::string_view text) {
  ASSIGN_OR_RETURN(Writer writer, Read(text));
  if (!writer.root_is_object) return InvalidArgument("JSON: want an object");
  return std::move(writer.root_members);
}

}  // namespace foresight
