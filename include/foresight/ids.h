// Identities that cross borders.
#pragma once

#include <cstdint>

namespace foresight {

// An entry of the model's vocabulary. Valid ids are 0 or more; what is below the model's vocab_size is the
// model's to check.
using TokenId = int32_t;

}  // namespace foresight
