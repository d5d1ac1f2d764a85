#include "speculative/step_costs.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace foresight {
namespace {

// Shares of what a step tells that the scale and its points take over: the scale more quickly, so that a
// machine that slows down as a whole changes few ratios. Neither by a single step: where others use the
// machine a step in ten takes twice as long, and drafts are made when plain steps seem slow.
constexpr double kScaleShare = 0.0625;
constexpr double kPointShare = 0.02;

Status CheckPoints(std::span<const CostPoint> points, std::string_view where) {
  if (points.empty()) return InvalidArgument("{}: want at least one point", where);
  int last = 0;
  for (const CostPoint& point : points) {
    if (point.count <= last) {
      return InvalidArgument("{}: want counts that ascend from 1, got {} after {}", where, point.count, last);
    }
    if (!(point.ms > 0 && point.ms < 1e9)) {
      return InvalidArgument("{}: want a time above 0 for {}, got {} ms", where, point.count, point.ms);
    }
    last = point.count;
  }
  return Status();
}

}  // namespace

double MedianMs(std::span<double> ms) {
  CHECK(!ms.empty());
  std::sort(ms.begin(), ms.end());
  return (ms[(ms.size() - 1) / 2] + ms[ms.size() / 2]) / 2;
}

void StepCosts::Curve::Interpolate(size_t first, size_t last) {
  const int counts_max = static_cast<int>(ms.size()) - 1;
  int count = 0;
  CostPoint left = points[0];
  if (first == 0) {
    for (; count <= std::min(left.count, counts_max); ++count) ms[count] = left.ms;
  } else {
    left.count = std::min(points[first - 1].count, counts_max);
    left.ms = ms[left.count];
    count = left.count + 1;
  }
  double slope = 0;
  for (size_t i = std::max(first, size_t{1}); i < points.size() && count <= counts_max; ++i) {
    // A measured time below that of fewer rows is noise.
    const CostPoint right{points[i].count, std::max(points[i].ms, left.ms)};
    slope = (right.ms - left.ms) / (right.count - left.count);
    const int end = std::min(right.count, counts_max);
    const double before = ms[end];
    for (; count <= end; ++count) ms[count] = left.ms + slope * (count - left.count);
    if (end == right.count) ms[end] = right.ms;
    if (i > last && i + 1 < points.size() && ms[end] == before) return;  // the last slope goes on
    left = right;
  }
  for (; count <= counts_max; ++count) ms[count] = left.ms + slope * (count - left.count);
}

void StepCosts::Curve::MoveTowards(int count, double ratio) {
  const auto right = std::find_if(points.begin(), points.end(),
                                  [&](const CostPoint& point) { return point.count >= count; });
  const double step = kPointShare * (ratio - 1);
  if (right == points.begin()) {
    right->ms *= 1 + step;
  } else if (right == points.end()) {
    points.back().ms *= 1 + step;
  } else {
    const auto left = right - 1;
    const double weight = static_cast<double>(count - left->count) / (right->count - left->count);
    left->ms *= 1 + step * (1 - weight);
    right->ms *= 1 + step * weight;
  }
  const size_t at = right - points.begin();
  Interpolate(at == 0 ? 0 : at - 1, std::min(at, points.size() - 1));
}

Result<StepCosts> StepCosts::Create(StepCostTable table, int rows_max, int requests_max) {
  CHECK(rows_max > 0 && requests_max > 0);
  if (!(table.host_ms >= 0 && table.host_ms < 1e9)) {
    return InvalidArgument("step costs: host_ms: want 0 or more, got {}", table.host_ms);
  }
  if (!(table.wait_ms >= 0 && table.wait_ms < 1e9)) {
    return InvalidArgument("step costs: wait_ms: want 0 or more, got {}", table.wait_ms);
  }
  RETURN_IF_ERROR(CheckPoints(table.draft_ms, "step costs: draft_ms"));
  RETURN_IF_ERROR(CheckPoints(table.draft_first_ms, "step costs: draft_first_ms"));
  if (table.verify_ms.empty()) return InvalidArgument("step costs: verify_ms: want at least one context");
  StepCosts costs;
  bool flat = true;
  for (auto& [context, points] : table.verify_ms) {
    RETURN_IF_ERROR(CheckPoints(points, fmt::format("step costs: verify_ms at context {}", context)));
    flat &= points.front().ms >= points.back().ms;
    costs.contexts_.push_back(context);
    costs.verify_.push_back({std::move(points), std::vector<double>(rows_max + 1)});
    costs.verify_.back().Interpolate();
  }
  if (flat) {
    return InvalidArgument(
        "step costs: verify_ms: no time grows with the number of rows; measure them again (at least 1 row "
        "and "
        "one larger count)");
  }
  costs.draft_ = {std::move(table.draft_ms), std::vector<double>(requests_max + 1)};
  costs.draft_.Interpolate();
  costs.draft_first_ = {std::move(table.draft_first_ms), std::vector<double>(requests_max + 1)};
  costs.draft_first_.Interpolate();
  costs.table_ = std::move(table);
  return costs;
}

size_t StepCosts::BucketOf(int64_t context_tokens) const {
  const auto place = std::lower_bound(contexts_.begin(), contexts_.end(), context_tokens);
  return std::min<size_t>(place - contexts_.begin(), contexts_.size() - 1);
}

double StepCosts::DraftMs(int requests, int tokens) const {
  CHECK(requests >= 0 && requests < std::ssize(draft_.ms));
  if (requests == 0) return 0;
  const double rest = table_.drafts_max > 1 ? (tokens - 1.0) / (table_.drafts_max - 1) : 1;
  const double all_ms = draft_.ms[requests];
  const double first_ms = std::min(draft_first_.ms[requests], all_ms);
  return first_ms + (all_ms - first_ms) * std::clamp(rest, 0.0, 1.0);
}

std::span<const double> StepCosts::VerifyMs(int64_t context_tokens) const {
  return verify_[BucketOf(context_tokens)].ms;
}

std::span<const CostPoint> StepCosts::VerifyPoints(int64_t context_tokens) const {
  return verify_[BucketOf(context_tokens)].points;
}

void StepCosts::Observe(const StepTimes& times) {
  Curve& verify = verify_[BucketOf(times.context_tokens)];
  CHECK(times.rows > 0 && times.rows < std::ssize(verify.ms), "a step of {} rows", times.rows);
  const double verify_ms = verify.ms[times.rows];
  const double draft_ms = DraftMs(times.draft_requests, times.draft_tokens);
  const auto ratio_of = [](double measured, double expected) {
    return std::clamp(measured / expected, 0.5, 2.0);
  };
  const double both = ratio_of(times.draft_ms + times.verify_ms, scale_ * (draft_ms + verify_ms));
  if (times.draft_requests == 0) {
    const double ratio = ratio_of(times.verify_ms + times.host_ms, scale_ * (verify_ms + table_.host_ms));
    scale_ *= 1 + kScaleShare * (ratio - 1);
    if (ratio > kFasterPace) drafted_pace_ = 1;
  } else {
    drafted_pace_ *= 1 + kPointShare * (both - 1);
  }
  verify.MoveTowards(times.rows, times.draft_is_apart ? ratio_of(times.verify_ms, scale_ * verify_ms) : both);
  if (times.draft_requests > 0) {
    const double ratio = times.draft_is_apart ? ratio_of(times.draft_ms, scale_ * draft_ms) : both;
    draft_.MoveTowards(times.draft_requests, ratio);
    draft_first_.MoveTowards(times.draft_requests, ratio);
  }
  table_.host_ms += kPointShare * (times.host_ms / scale_ - table_.host_ms);
}

StepCostTable StepCosts::Refreshed() const {
  StepCostTable table = table_;
  const auto scaled = [&](std::vector<CostPoint> points) {
    for (CostPoint& point : points) point.ms *= scale_;
    return points;
  };
  table.host_ms *= scale_;
  table.wait_ms *= scale_;
  table.draft_ms = scaled(draft_.points);
  table.draft_first_ms = scaled(draft_first_.points);
  for (size_t i = 0; i < contexts_.size(); ++i) table.verify_ms[contexts_[i]] = scaled(verify_[i].points);
  return table;
}

}  // namespace foresight
