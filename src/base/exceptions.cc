#include "base/exceptions.h"

#include <new>
#include <system_error>

namespace foresight {

Status StatusOf(const std::exception& exception) {
  if (dynamic_cast<const std::bad_alloc*>(&exception) != nullptr) {
    return ResourceExhausted("the system has no memory left");
  }
  if (const auto* const error = dynamic_cast<const std::system_error*>(&exception);
      error != nullptr && (error->code() == std::errc::resource_unavailable_try_again ||
                           error->code() == std::errc::not_enough_memory)) {
    return ResourceExhausted("the system has no thread or memory left: {}", exception.what());
  }
  return Error(StatusCode::kInternal, "{}", exception.what());
}

}  // namespace foresight
