// Parsing of JSON documents (config.json, tokenizer.json, safetensors headers): the one entry to Boost.JSON.
//
// The result is a plain boost::json::value; its object keeps the order of the keys. Writing JSON for prompts
// is not done here: see chat/python_json.h.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>
#include <boost/json/value.hpp>
#include <cstddef>
#include <string>
#include <string_view>

#include "base/status.h"

namespace foresight {

struct JsonLimits {
  size_t depth_max = 64;  // nested arrays and objects
};

// Parses one document of strict JSON in UTF-8, with white space around it and nothing else.
// The value owns an arena with everything in it: meant to be read and dropped, not to be grown for long.
// Errors: kInvalidArgument with the byte offset (syntax, bad UTF-8, too deep, cut off, bytes after the
// document); kResourceExhausted when memory runs out.
Result<boost::json::value> ParseJson(std::string_view text, JsonLimits limits = {});

// "an object", "a string", ...: for messages that say what came.
std::string_view JsonKindName(const boost::json::value& value);

// Text as a JSON string, its quotes included.
std::string JsonString(std::string_view text);

}  // namespace foresight
