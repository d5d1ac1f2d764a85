// What the standard library throws where it has no other way to say it.
#pragma once

#include <exception>

#include "base/status.h"

namespace foresight {

// kResourceExhausted where the system had no memory or no thread to give, else kInternal.
Status StatusOf(const std::exception& exception);

}  // namespace foresight
