// Operating errors are values: a Status says what was expected, what came and where; Result<T> is a value or
// a Status. No function of this library throws.
#pragma once

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace foresight {

enum class StatusCode {
  kOk,
  kInvalidArgument,    // the caller's or the file's fault: wrong shape, dtype, range, syntax
  kNotFound,           // a file, tensor or name that is not there
  kUnimplemented,      // well-formed, but this program can't run it
  kResourceExhausted,  // memory, blocks, limits
  kDeadlineExceeded,
  kCancelled,
  kDataLoss,  // damaged bytes
  kDeviceError,
  kUnavailable,
  kInternal,
};

std::string_view StatusCodeName(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // "invalid argument: ..."
  std::string ToString() const;
  // The same error with "where: " in front of its message; ok stays ok.
  Status WithContext(std::string_view where) const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A value or the Status (never ok) that says why there is none.
template <typename T>
class [[nodiscard]] Result : public tl::expected<T, Status> {
  using Base = tl::expected<T, Status>;

 public:
  Result(T value) : Base(std::move(value)) {}                              // NOLINT: implicit by design
  Result(Status status) : Base(tl::make_unexpected(std::move(status))) {}  // NOLINT: implicit by design
  bool ok() const { return this->has_value(); }
  // Ok when there is a value.
  Status status() const { return ok() ? Status() : this->error(); }
};

}  // namespace foresight
