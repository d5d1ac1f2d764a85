// Which steps a device has recorded, as far as they have shown it, and which recordings are worth it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace foresight {

// What tells a step's recordings apart: of the target's rows, and of the drafts.
struct StepShape {
  int requests = 0;
  int drafting = 0;  // of them
  int tokens = 0;    // of the longest draft
  int verified = 0;  // drafts
  int unread = 0;    // positions that the drafter reads before it drafts
};

// A device takes longer for a step until it has recorded it. How often a step will come isn't known: drafts
// wait until as much gain was missed as the recordings that they want will take, so that no more is lost than
// twice the least. Steps that are never recorded count as recorded. One thread at a time; allocates in its
// constructor only.
class RecordedSteps {
 public:
  RecordedSteps() : recordings_(kRecordingsMax) {}

  // What such a step takes more than it will once it is recorded, as far as is known.
  double UnrecordedMs(const StepShape& shape) const { return NumMissing(shape) * more_ms_; }
  // A step of that shape would gain so much: whether it may be one. If not, that gain is missed.
  bool Allows(const StepShape& shape, double gain_ms);
  // A step of that shape is over, `more_ms` of which it will not take again.
  void Count(const StepShape& shape, bool is_warm_up, double more_ms);

 private:
  // By their keys, which may chase each other away: then some gain is missed anew.
  static constexpr size_t kRecordingsMax = 1024;
  static constexpr int kUnrecordedRuns = 9;
  static constexpr double kMoreShare = 1.0 / 8;
  struct Recording {
    uint32_t key = 0;
    bool is_made = false;
    int runs = 0;  // without it
    double missed_ms = 0;
    double PriceMs(double more_ms) const { return (kUnrecordedRuns - runs) * more_ms; }
  };
  // Of the target's rows and of the drafts, those of the least tiers (row_tiers.h); 0: never recorded.
  static std::array<uint32_t, 2> KeysOf(const StepShape& shape);
  // Whether each of them is made, or another that does as well.
  std::array<bool, 2> AreMade(const StepShape& shape) const;
  size_t PlaceOf(uint32_t key) const;
  // As it is known; an unknown one is as good as new.
  Recording Find(uint32_t key) const;
  Recording& Of(uint32_t key);
  int NumMissing(const StepShape& shape) const;

  std::vector<Recording> recordings_;
  int warm_ups_ = 0;
  double more_ms_ = 0;  // of a step for a recording that isn't made, a moving average
};

}  // namespace foresight
