// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace foresight {

// "584 B", "4.1 MB", "159.6 GB": powers of 1000, one digit after the point.
std::string FormatBytes(uint64_t bytes);
// "69,187"
std::string FormatCount(uint64_t count);

}  // namespace foresight
