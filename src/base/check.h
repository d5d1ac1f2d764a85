// Programmer errors stop the process, loudly: CHECK in all builds, DCHECK in hot loops of debug builds.
#pragma once

#include <fmt/core.h>

#include <string_view>

namespace foresight {

// Prints the condition, the place and the message to standard error and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, std::string_view message);

}  // namespace foresight

// CHECK(rows > 0); CHECK(a == b, "want {}, got {}", a, b);
#define CHECK(condition, ...)                                                                  \
  do {                                                                                         \
    if (!(condition)) [[unlikely]]                                                             \
      ::foresight::CheckFailed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)

#ifdef NDEBUG
#define DCHECK(condition, ...) \
  do {                         \
  } while (false && (condition))
#else
#define DCHECK(condition, ...) CHECK(condition, __VA_ARGS__)
#endif
