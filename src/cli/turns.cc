#include "cli/turns.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/rng.h"

namespace foresight {
namespace {

constexpr int64_t kGroupsMax = 20;
constexpr int64_t kGroupsMin = 3;
constexpr int64_t kGroupTurnsMin = 2;

// The 97.5 % quantile of Student's t, by degrees of freedom from 1 on.
constexpr std::array<double, kGroupsMax - 1> kStudent = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365,
                                                         2.306,  2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
                                                         2.131,  2.120, 2.110, 2.101, 2.093};

double Sum(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

}  // namespace

void TurnTimes::DrawOrder() {
  const int workers = static_cast<int>(seconds_.size());
  const int last = order_.empty() ? -1 : order_.back();
  order_.resize(workers);
  std::iota(order_.begin(), order_.end(), 0);
  const RandomSequence random({.seed = turns_++});
  for (int i = workers - 1; i > 0; --i) {
    std::swap(order_[i], order_[random[i] % static_cast<uint64_t>(i + 1)]);
  }
  if (order_.front() == last) std::swap(order_.front(), order_.back());
}

Status TurnTimes::Take(std::span<const Worker> workers, int64_t work, int64_t turns) {
  CHECK(workers.size() == seconds_.size() && turns > 0);
  for (int64_t turn = 1; turn <= turns; ++turn) {
    DrawOrder();
    for (int worker : order_) {
      ASSIGN_OR_RETURN(const double seconds, workers[worker](work * turn / turns));
      seconds_[worker].push_back(seconds);
    }
  }
  return Status();
}

std::string RatioEstimate::ToText(std::string_view plus_minus) const {
  if (!std::isfinite(error)) return fmt::format("{:.3f}", value);
  return fmt::format("{:.3f} {} {:.3f}", value, plus_minus, error);
}

RatioEstimate TimesFaster(std::span<const double> base, std::span<const double> other) {
  CHECK(base.size() == other.size());
  const double base_seconds = Sum(base);
  const double seconds = Sum(other);
  const auto turns = static_cast<int64_t>(base.size());
  RatioEstimate ratio{.value = base_seconds / seconds, .error = std::numeric_limits<double>::infinity()};
  const int64_t groups = std::min(turns / kGroupTurnsMin, kGroupsMax);
  if (groups < kGroupsMin) return ratio;
  double squares = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = turns * g / groups;
    const int64_t count = turns * (g + 1) / groups - begin;
    const double rest = Sum(base.subspan(begin, count)) - ratio.value * Sum(other.subspan(begin, count));
    squares += rest * rest;
  }
  const auto n = static_cast<double>(groups);
  ratio.error = kStudent[groups - 2] * std::sqrt(squares * n / (n - 1)) / seconds;
  return ratio;
}

}  // namespace foresight
