// Reading the members of the small JSON files of this module, with errors that say where.
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/utf8.h"

namespace foresight {

inline Result<const boost::json::value*> JsonMember(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains(key);
  if (value == nullptr) return InvalidArgument("\"{}\" is missing", key);
  return value;
}

inline Result<const boost::json::object*> JsonObject(const boost::json::value& value,
                                                     std::string_view where) {
  if (!value.is_object()) return InvalidArgument("{}: want an object, got {}", where, JsonKindName(value));
  return &value.get_object();
}

inline Result<const boost::json::array*> JsonArray(const boost::json::object& object, std::string_view key,
                                                   size_t size_max) {
  ASSIGN_OR_RETURN(const boost::json::value* value, JsonMember(object, key));
  if (!value->is_array()) return InvalidArgument("{}: want an array, got {}", key, JsonKindName(*value));
  if (value->get_array().size() > size_max) {
    return InvalidArgument("{}: want at most {} entries, got {}", key, size_max, value->get_array().size());
  }
  return &value->get_array();
}

inline Result<double> JsonNumber(const boost::json::value& value, std::string_view where) {
  if (!value.is_number()) return InvalidArgument("{}: want a number, got {}", where, JsonKindName(value));
  return value.to_number<double>();
}

inline Result<int64_t> JsonCount(const boost::json::value& value, std::string_view where, int64_t max) {
  ASSIGN_OR_RETURN(const double number, JsonNumber(value, where));
  if (!(number >= 0 && number <= static_cast<double>(max)) || number != std::floor(number)) {
    return InvalidArgument("{}: want a whole number 0..{}, got {}", where, max, number);
  }
  return static_cast<int64_t>(number);
}

inline Result<std::string> JsonText(const boost::json::object& object, std::string_view key) {
  ASSIGN_OR_RETURN(const boost::json::value* value, JsonMember(object, key));
  if (!value->is_string()) return InvalidArgument("{}: want a string, got {}", key, JsonKindName(*value));
  return std::string(value->get_string());
}

// A text that reports show.
inline Result<std::string> JsonName(const boost::json::object& object, std::string_view key) {
  ASSIGN_OR_RETURN(std::string name, JsonText(object, key));
  if (HasControlCharacters(name)) return InvalidArgument("{}: control characters in \"{}\"", key, name);
  return name;
}

// "format" and "version" of a file of ours.
inline Status CheckJsonFormat(const boost::json::object& object, std::string_view format, int version) {
  ASSIGN_OR_RETURN(const std::string got, JsonText(object, "format"));
  if (got != format) return InvalidArgument("format: want \"{}\", got \"{}\"", format, got);
  ASSIGN_OR_RETURN(const boost::json::value* value, JsonMember(object, "version"));
  ASSIGN_OR_RETURN(const double number, JsonNumber(*value, "version"));
  if (number != version) return InvalidArgument("version: this program reads {}, got {}", version, number);
  return Status();
}

}  // namespace foresight
