#include "speculative/recorded_steps.h"

#include <algorithm>
#include <bit>

#include "base/row_tiers.h"

namespace foresight {

std::array<uint32_t, 2> RecordedSteps::KeysOf(const StepShape& shape) {
  std::array<uint32_t, 2> keys = {};
  const int rows = shape.requests + shape.verified;
  if (rows <= kReplayedRowsMax) {
    const int tier = shape.verified > 0 ? RowTier(rows) : 0;
    keys[0] = uint32_t{1} << 31 | static_cast<uint32_t>(shape.requests << 8 | tier);
  }
  const int read = UnreadTier(shape.unread);
  if (shape.drafting > 0 && shape.drafting * shape.tokens <= kReplayedRowsMax && read <= kReplayedRowsMax) {
    keys[1] = uint32_t{1} << 30 | static_cast<uint32_t>(shape.drafting << 16 | shape.tokens << 8 | read);
  }
  return keys;
}

size_t RecordedSteps::PlaceOf(uint32_t key) const {
  constexpr int kBits = std::bit_width(kRecordingsMax - 1);
  return key * uint32_t{2654435769} >> (32 - kBits);
}

RecordedSteps::Recording RecordedSteps::Find(uint32_t key) const {
  const Recording& found = recordings_[PlaceOf(key)];
  return found.key == key ? found : Recording{.key = key};
}

RecordedSteps::Recording& RecordedSteps::Of(uint32_t key) {
  Recording& found = recordings_[PlaceOf(key)];
  if (found.key != key) found = {.key = key};
  return found;
}

int RecordedSteps::NumMissing(const StepShape& shape) const {
  const std::array<uint32_t, 2> keys = KeysOf(shape);
  return static_cast<int>(std::count_if(keys.begin(), keys.end(),
                                        [this](uint32_t key) { return key != 0 && !Find(key).is_made; }));
}

bool RecordedSteps::Allows(const StepShape& shape, double gain_ms) {
  if (gain_ms >= UnrecordedMs(shape)) return true;  // it gains even so
  bool allows = true;
  for (const uint32_t key : KeysOf(shape)) {
    if (key == 0) continue;
    Recording& recording = Of(key);
    if (recording.is_made || recording.missed_ms >= recording.PriceMs(more_ms_)) continue;
    recording.missed_ms += gain_ms;
    allows = false;
  }
  return allows;
}

void RecordedSteps::Count(const StepShape& shape, bool is_warm_up, double more_ms) {
  const std::array<uint32_t, 2> keys = KeysOf(shape);
  const int missing = NumMissing(shape);
  if (is_warm_up && missing > 0) {
    more_ms_ += std::max(kMoreShare, 1.0 / ++warm_ups_) * (std::max(0.0, more_ms) / missing - more_ms_);
  }
  for (const uint32_t key : keys) {
    if (key == 0) continue;
    Recording& recording = Of(key);
    if (!is_warm_up) {
      recording = {.key = key, .is_made = true};
    } else if (missing == 0) {
      recording = {.key = key};  // one of them is gone, or was another's
    } else if (!recording.is_made) {
      recording.is_made = ++recording.runs == kUnrecordedRuns;
    }
  }
}

}  // namespace foresight
