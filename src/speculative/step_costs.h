// What a step costs: host time + drafting for some requests + a target forward of some rows (dspark.md 5.4).
//
// Measured, kept in a file, refreshed while serving. A step's cost is taken as linear between measured
// points: a CPU runs exactly the rows it is given, and the tiers to which a device pads steps that it records
// (base/row_tiers.h) are close to one another.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace foresight {

struct CostPoint {
  int count = 0;  // requests that draft, or rows of the target's step
  double ms = 0;
};

// The file. Points ascend by count.
struct StepCostTable {
  std::string model;   // hash of the target's and the draft's tensors, as the engine names it
  std::string build;   // of the program, with its kernel table and number of threads
  std::string device;  // in words, for people
  int drafts_max = 0;  // tokens of a draft (gamma)
  double host_ms = 0;
  // For how long a device stands idle in a step that waits for its drafts before it verifies them; 0: it
  // doesn't draw them.
  double wait_ms = 0;
  std::vector<CostPoint> draft_ms;        // by requests, for drafts of drafts_max tokens
  std::vector<CostPoint> draft_first_ms;  // of one token; those of more lie between in proportion
  std::map<int64_t, std::vector<CostPoint>>
      verify_ms;  // by context in tokens (upper end of a bucket), by rows
};

// {"format": "dspark-sps", "version": 4, ...}. Errors of parsing: kInvalidArgument, saying where.
std::string FormatStepCosts(const StepCostTable& table);
Result<StepCostTable> ParseStepCosts(std::string_view json);
// Refuses a table of another model, build or draft length (kInvalidArgument, saying both).
Status CheckStepCosts(const StepCostTable& table, std::string_view model, std::string_view build,
                      int drafts_max);

// The median of some measurements of one point, which it puts in order. For profiling.
double MedianMs(std::span<double> ms);

// What one step took.
struct StepTimes {
  int draft_requests = 0;  // that drafted
  int draft_tokens = 0;    // of the longest draft
  int rows = 0;            // of the target's forward
  int64_t context_tokens = 0;
  double draft_ms = 0;
  double verify_ms = 0;
  double host_ms = 0;
  // Whether draft_ms is all that the drafts took. If not, a device drew them while the host went on: the rest
  // lies in verify_ms.
  bool draft_is_apart = true;
  // Rows of prompts were among it, or the device has yet to record steps like it, or did so: it has cost what
  // it has cost and says nothing of what others will.
  bool has_prompts = false;
  bool is_warm_up = false;
};

// Look-ups and refresh. Allocates in Create only. One thread at a time.
//
// Times are those of the machine as it was profiled: decisions depend on ratios. scale() brings them to the
// present.
class StepCosts {
 public:
  // Steps of up to `rows_max` rows and `requests_max` requests. Errors: kInvalidArgument (no points, counts
  // that don't ascend, times that are not positive numbers; all verify times equal: verifying everything
  // would look free).
  static Result<StepCosts> Create(StepCostTable table, int rows_max, int requests_max);

  // Non-decreasing in their counts. Before the first measured point as there, beyond the last one its slope
  // goes on. 0 requests draft for nothing. `tokens`: of the longest draft, at most drafts_max.
  double DraftMs(int requests, int tokens) const;
  // Of drafts of drafts_max tokens.
  double DraftMs(int requests) const { return DraftMs(requests, table_.drafts_max); }
  int requests_max() const { return static_cast<int>(draft_.ms.size()) - 1; }
  // [rows_max + 1]: by rows, at the smallest bucket that holds `context_tokens` (the largest, if none does).
  std::span<const double> VerifyMs(int64_t context_tokens) const;
  // The points that it lies between, by rows: from one's count to the next one's it is a straight line.
  std::span<const CostPoint> VerifyPoints(int64_t context_tokens) const;
  double HostMs() const { return table_.host_ms; }
  double WaitMs() const { return table_.wait_ms; }
  // Present time over profiled time, as steps show it.
  double scale() const { return scale_; }
  // Steps with drafts have become faster by a tenth since there was one without. It may be the machine: where
  // every step drafts, scale() is as it was, and drafts seem to gain what plain steps would gain as well. A
  // plain step tells, or several.
  bool NeedsPlainStep() const { return drafted_pace_ < kFasterPace; }

  // Learns from a step. What a plain step shows of the machine goes to scale(), the rest slowly to the points
  // beside it; with drafts all goes to the points, or drafts that cost more than expected would pass for a
  // machine that has slowed down, and plain steps for as dear as they. A single measurement counts at most
  // twice and at least half its expected value, so that a pause of the machine does little harm. Uses what
  // has happened only: the decisions that follow stay exact.
  void Observe(const StepTimes& times);

  // As refreshed and scaled, to be written to a file.
  StepCostTable Refreshed() const;

 private:
  // Points and what they give for every count.
  struct Curve {
    std::vector<CostPoint> points;
    std::vector<double> ms;  // [counts_max + 1]
    void Interpolate() { Interpolate(0, points.size() - 1); }
    // After changes of the points first to last alone: a step has few counts beside them, and all of them
    // would push what the host needs next out of its nearest cache.
    void Interpolate(size_t first, size_t last);
    void MoveTowards(int count, double ratio);
  };
  static constexpr double kFasterPace = 0.9;
  StepCosts() = default;
  size_t BucketOf(int64_t context_tokens) const;

  StepCostTable table_;            // its points are in the curves
  std::vector<int64_t> contexts_;  // ascending
  std::vector<Curve> verify_;      // [contexts]
  Curve draft_;
  Curve draft_first_;
  double scale_ = 1;
  double drafted_pace_ = 1;  // of steps with drafts, by what they told since the last plain one
};

}  // namespace foresight
