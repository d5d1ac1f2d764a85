// Ctrl-C.
#pragma once

#include <atomic>

namespace foresight {

// From here on Ctrl-C sets Interrupted(). A second one, before the first was noticed and taken back, ends the
// program.
void CatchInterrupts();
// For commands to look at, and to take back when they go on.
std::atomic<bool>& Interrupted();

}  // namespace foresight
