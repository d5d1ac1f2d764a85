// Text from outside and to it, whole.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace foresight {

inline constexpr int64_t kTextBytesMax = int64_t{256} << 20;

// Errors: kNotFound (it can't be read), kInvalidArgument (more than kTextBytesMax).
Result<std::string> ReadTextFile(const std::string& path);
// What is left of it.
Result<std::string> ReadStandardInput();

// A file that others see with its old text or its new one, whole; a link goes on leading to it. A pipe or a
// device is written as it is. Error: kInvalidArgument.
Status WriteTextFile(const std::string& path, std::string_view text);
// The error that writing there would end with, as far as it can be known before the work whose result it is.
Status CheckWritable(const std::string& path);

}  // namespace foresight
