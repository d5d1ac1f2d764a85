// Operating errors are values: a Status says what was expected, what came and where; Result<T> is a value or
// a Status.
//
// Programmer errors are not values: see base/check.h. Exceptions are not part of any interface; third-party
// ones are caught where they arise.
#pragma once

#include <fmt/core.h>

#include <utility>

#include "foresight/status.h"

namespace foresight {

// The program's exit status for an error that ends a command: 2 input (configuration, checkpoint, request), 3
// memory, 70 a fault of the program or the machine, 130 interrupted. A usage error of the command line is 1
// (kUsageExitCode).
int ExitCode(StatusCode code);
inline constexpr int kUsageExitCode = 1;

template <typename... Args>
Status Error(StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return Error(StatusCode::kInvalidArgument, format, std::forward<Args>(args)...);
}
template <typename... Args>
Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return Error(StatusCode::kNotFound, format, std::forward<Args>(args)...);
}
template <typename... Args>
Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) {
  return Error(StatusCode::kUnimplemented, format, std::forward<Args>(args)...);
}
template <typename... Args>
Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return Error(StatusCode::kResourceExhausted, format, std::forward<Args>(args)...);
}
template <typename... Args>
Status DataLoss(fmt::format_string<Args...> format, Args&&... args) {
  return Error(StatusCode::kDataLoss, format, std::forward<Args>(args)...);
}

}  // namespace foresight

// Returns the Status of `expr` (a Status expression) from the enclosing function when it is an error.
#define RETURN_IF_ERROR(expr)                                                               \
  do {                                                                                      \
    if (::foresight::Status status_or_ok = (expr); !status_or_ok.ok()) return status_or_ok; \
  } while (false)

#define FORESIGHT_CONCAT_INNER(a, b) a##b
#define FORESIGHT_CONCAT(a, b) FORESIGHT_CONCAT_INNER(a, b)
// ASSIGN_OR_RETURN(auto x, F()); declares or assigns x from the Result of F(), or returns its error.
#define ASSIGN_OR_RETURN(lhs, expr) ASSIGN_OR_RETURN_IMPL(FORESIGHT_CONCAT(result_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL(result, lhs, expr) \
  auto result = (expr);                          \
  if (!result.ok()) return result.error();       \
  lhs = std::move(*result)
