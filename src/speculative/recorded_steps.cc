#include "speculative/recorded_steps.h"

#include <algorithm>
#include <bit>

#include "base/row_tiers.h"

namespace foresight {

namespace {

uint32_t KeyOf(const StepTier& tier) {
  return uint32_t{1} << 31 | static_cast<uint32_t>(tier.sequences << 8 | tier.rows);
}

uint32_t KeyOf(const DraftTier& tier, int tokens) {
  return uint32_t{1} << 30 | static_cast<uint32_t>(tier.blocks << 20 | tokens << 12 | tier.unread);
}

bool HasRecordedRows(const StepShape& shape) {
  return shape.requests + shape.verified <= kReplayedRowsMax;
}

bool HasRecordedDrafts(const StepShape& shape) {
  return shape.drafting > 0 && shape.drafting * shape.tokens <= kReplayedRowsMax &&
         shape.unread <= kReplayedUnreadMax;
}

}  // namespace

std::array<uint32_t, 2> RecordedSteps::KeysOf(const StepShape& shape) {
  std::array<uint32_t, 2> keys = {};
  if (HasRecordedRows(shape)) keys[0] = KeyOf(LeastStepTier(shape.requests + shape.verified, shape.requests));
  if (HasRecordedDrafts(shape)) {
    keys[1] = KeyOf(LeastDraftTier(shape.drafting, shape.tokens, shape.unread), shape.tokens);
  }
  return keys;
}

std::array<bool, 2> RecordedSteps::AreMade(const StepShape& shape) const {
  std::array<bool, 2> are_made = {true, true};
  if (HasRecordedRows(shape)) {
    are_made[0] = RecordedStepTier(shape.requests + shape.verified, shape.requests, kReplayedRowsMax,
                                   [this](const StepTier& tier) { return Find(KeyOf(tier)).is_made; })
                      .has_value();
  }
  if (HasRecordedDrafts(shape)) {
    are_made[1] = RecordedDraftTier(shape.drafting, shape.tokens, shape.unread, [&](const DraftTier& tier) {
                    return Find(KeyOf(tier, shape.tokens)).is_made;
                  }).has_value();
  }
  return are_made;
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
  const std::array<bool, 2> are_made = AreMade(shape);
  return static_cast<int>(std::count(are_made.begin(), are_made.end(), false));
}

bool RecordedSteps::Allows(const StepShape& shape, double gain_ms) {
  if (gain_ms >= UnrecordedMs(shape)) return true;  // it gains even so
  const std::array<uint32_t, 2> keys = KeysOf(shape);
  const std::array<bool, 2> are_made = AreMade(shape);
  bool allows = true;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (are_made[i]) continue;
    Recording& recording = Of(keys[i]);
    if (recording.missed_ms >= recording.PriceMs(more_ms_)) continue;
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
