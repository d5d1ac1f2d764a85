// Text from outside, whole.
#pragma once

#include <cstdint>
#include <istream>
#include <string>

#include "base/status.h"

namespace foresight {

inline constexpr int64_t kTextBytesMax = int64_t{256} << 20;

// Everything that is left of `in`; `name` is for messages. Errors: kNotFound (it can't be read),
// kInvalidArgument (more than kTextBytesMax).
Result<std::string> ReadText(std::istream& in, const std::string& name);
Result<std::string> ReadTextFile(const std::string& path);

}  // namespace foresight
