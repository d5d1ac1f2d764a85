#include "base/check.h"

#include <cstdlib>

#include "base/tell.h"

namespace foresight {

void CheckFailed(const char* file, int line, const char* condition, std::string_view message) {
  Tell("{}:{}: check failed: {} {}\n", file, line, condition, message);
  std::abort();
}

}  // namespace foresight
