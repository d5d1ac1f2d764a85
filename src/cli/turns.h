// Times several ways of doing the same work side by side: they take turns of a fraction of a second, so that
// a machine whose speed drifts is as fast for one of them as for another, and their ratios have intervals.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace foresight {

// Goes on until `amount` of its work is done, from its begin on; what a step does beyond that counts as done.
// Returns the seconds that this took.
using Worker = std::function<Result<double>(int64_t amount)>;

// What they took, turn by turn. In each turn every worker brings the same share of the work to its end, in an
// order that is drawn anew: nobody has a place or a predecessor of its own, whose caches it would find. Nor
// does anybody work twice in a row, with its own caches.
class TurnTimes {
 public:
  explicit TurnTimes(int workers) : seconds_(workers) {}

  // Adds `turns` turns, in which each of the workers does `work`. Errors: the workers'.
  Status Take(std::span<const Worker> workers, int64_t work, int64_t turns);

  // Of every turn so far.
  std::span<const double> seconds(int worker) const { return seconds_[worker]; }

 private:
  void DrawOrder();

  std::vector<std::vector<double>> seconds_;  // [workers][turns]
  std::vector<int> order_;                    // of the last turn
  int64_t turns_ = 0;
};

// A ratio with its interval of 95 %.
struct RatioEstimate {
  double value = 1;
  double error = 0;  // the interval goes as far to both sides; infinite: there were too few turns to tell

  double low() const { return value - error; }
  double high() const { return value + error; }
  // "1.012 +- 0.010" with that sign; "1.012" without an interval.
  std::string ToText(std::string_view plus_minus) const;
};

// How many times faster than `base` the same work was done: the ratio of the sums of turns. The error is that
// of a ratio estimator over groups of consecutive turns, at most 20, with Student's t: what reaches over a
// few turns (a step that did more than its share, a slow phase) lies within a group.
RatioEstimate TimesFaster(std::span<const double> base, std::span<const double> other);

}  // namespace foresight
