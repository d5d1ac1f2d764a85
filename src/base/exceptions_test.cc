#include "base/exceptions.h"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <system_error>

namespace foresight {
namespace {

TEST(StatusOf, TellsWhatTheSystemLacksFromFaults) {
  EXPECT_EQ(StatusOf(std::bad_alloc()).code(), StatusCode::kResourceExhausted);
  for (const std::errc lack : {std::errc::resource_unavailable_try_again, std::errc::not_enough_memory}) {
    EXPECT_EQ(StatusOf(std::system_error(std::make_error_code(lack))).code(), StatusCode::kResourceExhausted);
  }
  const auto full = std::make_error_code(std::errc::no_space_on_device);
  EXPECT_EQ(StatusOf(std::system_error(full)).code(), StatusCode::kInternal);
  EXPECT_EQ(StatusOf(std::runtime_error("what it says")).message(), "what it says");
}

}  // namespace
}  // namespace foresight
