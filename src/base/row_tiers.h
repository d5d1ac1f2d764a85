// How many rows and sequences a step has that a device may record: one of few numbers, so that steps of any
// number of them soon find their recording, or another's that holds them. The rest is padding (SequenceRows).
#pragma once

#include <algorithm>
#include <bit>
#include <optional>

namespace foresight {

// Steps of so few rows come again and again in the same shapes: a device may record them (Device::Replay).
inline constexpr int kReplayedRowsMax = 128;
// Drafts that read more rows before they draft aren't recorded.
inline constexpr int kReplayedUnreadMax = 256;

constexpr int PowerOfTwoFor(int count) {
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>(count)));
}

// 1 to 8, 10, 12, 14, 16, 20, 24 .. 64, 72, 80 .. : the least that holds `rows` of eighths of a power of two,
// and of eights; at most a fifth of them, and one, is padding. 0 for 0.
constexpr int RowTier(int rows) {
  const int unit = std::clamp(PowerOfTwoFor(rows) / 8, 1, 8);
  return (rows + unit - 1) / unit * unit;
}

// Whether a tier that is recorded is computed instead of so many rows whose own isn't: more rows, up to a
// third, cost less than launches one by one.
constexpr bool IsNearTier(int tier, int rows) {
  return 3 * tier <= 4 * rows;
}

// What a step of the main layers is computed as.
struct StepTier {
  int rows = 0;
  int sequences = 0;
  bool operator==(const StepTier&) const = default;
};

// The least one for a step of up to rows_max rows. Where each sequence has one row, so has the padding; else
// sequences without rows cost next to nothing.
constexpr StepTier LeastStepTier(int rows, int sequences, int rows_max = kReplayedRowsMax) {
  const int tier = std::min(RowTier(rows), std::max(rows, rows_max));
  return {tier, rows == sequences ? tier : PowerOfTwoFor(sequences)};
}

// The least one that is recorded, the least of all or near; nothing: none is.
template <typename IsRecorded>
std::optional<StepTier> RecordedStepTier(int rows, int sequences, int rows_max,
                                         const IsRecorded& is_recorded) {
  const StepTier least = LeastStepTier(rows, sequences, rows_max);
  const bool is_plain = rows == sequences;
  for (int tier = least.rows; tier <= rows_max; tier = RowTier(tier + 1)) {
    if (tier > least.rows && !IsNearTier(tier, rows)) break;
    const int sequences_max = is_plain ? tier : kReplayedRowsMax;
    for (int s = is_plain ? tier : least.sequences; s <= sequences_max; s *= 2) {
      if (is_recorded(StepTier{tier, s})) return StepTier{tier, s};
    }
  }
  return std::nullopt;
}

// What drafts are computed as.
struct DraftTier {
  int blocks = 0;
  int unread = 0;  // rows that the drafter reads before
  bool operator==(const DraftTier&) const = default;
};

// The least one for blocks of `size` rows each. Rows that are read come in any number: some more cost less
// than another recording.
constexpr DraftTier LeastDraftTier(int blocks, int size, int unread) {
  constexpr int kLeastUnread = 8;
  const bool fits = RowTier(blocks) * size <= kReplayedRowsMax;
  return {fits ? RowTier(blocks) : blocks, unread == 0 ? 0 : PowerOfTwoFor(std::max(unread, kLeastUnread))};
}

// As RecordedStepTier.
template <typename IsRecorded>
std::optional<DraftTier> RecordedDraftTier(int blocks, int size, int unread, const IsRecorded& is_recorded) {
  const DraftTier least = LeastDraftTier(blocks, size, unread);
  for (int tier = least.blocks; tier * size <= kReplayedRowsMax; tier = RowTier(tier + 1)) {
    if (tier > least.blocks && !IsNearTier(tier, blocks)) break;
    for (int read = least.unread; read <= kReplayedUnreadMax; read *= 2) {
      if (is_recorded(DraftTier{tier, read})) return DraftTier{tier, read};
      if (read == 0) break;
    }
  }
  return std::nullopt;
}

}  // namespace foresight
