// Files with one thing in them changed, for tests of their parsers.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace foresight {

// `text` with the first `from` replaced, which must be there.
inline std::string Replaced(std::string text, std::string_view from, std::string_view to) {
  const size_t place = text.find(from);
  EXPECT_NE(place, std::string::npos) << from;
  return place == std::string::npos ? text : text.replace(place, from.size(), to);
}

}  // namespace foresight
