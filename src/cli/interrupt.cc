#include "cli/interrupt.h"

#include <unistd.h>

#include <csignal>

#include "base/status.h"

namespace foresight {
namespace {

// The one piece of state that a signal handler needs.
std::atomic<bool> g_interrupted{false};

void OnInterrupt(int) {
  if (g_interrupted.exchange(true)) _exit(ExitCode(StatusCode::kCancelled));
}

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;
  sigaction(SIGINT, &action, nullptr);
}

std::atomic<bool>& Interrupted() {
  return g_interrupted;
}

}  // namespace foresight
