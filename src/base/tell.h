// What a program tells people beside its results.
#pragma once

#include <fmt/core.h>

#include <string_view>
#include <utility>

namespace foresight {

// To standard error. Where that is closed, full or read by nobody nothing is told, and nothing else happens:
// fmt::print would throw, on whatever thread it is.
void TellText(std::string_view text);
template <typename... Args>
void Tell(fmt::format_string<Args...> format, Args&&... args) {
  TellText(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace foresight
