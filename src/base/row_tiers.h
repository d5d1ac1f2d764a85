// How many rows a step has that a device may record: one of few numbers, so that steps of any number of rows
// soon find their recording. The rest is padding (SequenceRows).
#pragma once

#include <algorithm>
#include <bit>

namespace foresight {

// Steps of so few rows come again and again in the same shapes: a device may record them (Device::Replay).
inline constexpr int kReplayedRowsMax = 64;

// 1 to 8, 10, 12, 14, 16, 20, 24 .. : the least of eighths of a power of two that holds `rows`; at most
// a fifth of them, and one, is padding. 0 for 0.
constexpr int RowTier(int rows) {
  const int unit = std::max(1, static_cast<int>(std::bit_ceil(static_cast<unsigned>(rows))) / 8);
  return (rows + unit - 1) / unit * unit;
}

// Of the rows that a drafter reads before it drafts, which come in any number: some rows more cost less than
// another recording.
constexpr int UnreadTier(int rows) {
  constexpr int kLeast = 8;
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max(rows, kLeast))));
}

}  // namespace foresight
