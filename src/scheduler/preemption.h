// What becomes of the state of a preempted sequence.
#pragma once

#include <cstdint>

namespace foresight {

struct PreemptionCosts {
  double token_seconds = 0;     // to compute a token again
  double bytes_per_second = 0;  // to save a state, and to restore it
  int64_t saved_bytes_max = 0;  // of all saved states
};

// Whether saving a state of `state_bytes` and restoring it later is cheaper than computing its `tokens`
// again, and allowed beside `saved_bytes` of other states.
inline bool IsWorthSaving(int64_t tokens, int64_t state_bytes, int64_t saved_bytes,
                          const PreemptionCosts& costs) {
  if (saved_bytes + state_bytes > costs.saved_bytes_max) return false;
  return 2 * static_cast<double>(state_bytes) <
         static_cast<double>(tokens) * costs.token_seconds * costs.bytes_per_second;
}

}  // namespace foresight
