// Counts the allocations of a test program that links allocation_counter: it replaces the global operator
// new.
#pragma once

#include <cstdint>

namespace foresight {

// Calls of any form of operator new since the program began, of all threads.
int64_t Allocations();

}  // namespace foresight
