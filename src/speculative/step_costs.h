// What a step costs: host time + drafting for some requests + a target forward of some rows (dspark.md 5.4).
//
// Measured, kept in a file, refreshed while serving. A step's cost is taken as linear between measured
// points: a CPU runs exactly the rows it is given. (A device that pads to captured graph sizes would round up
// instead.)
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
  std::vector<CostPoint> draft_ms;  // by requests
  std::map<int64_t, std::vector<CostPoint>>
      verify_ms;  // by context in tokens (upper end of a bucket), by rows
};

// {"format": "dspark-sps", "version": 1, ...}. Errors of parsing: kInvalidArgument, saying where.
std::string FormatStepCosts(const StepCostTable& table);
Result<StepCostTable> ParseStepCosts(std::string_view json);
// Refuses a table of another model, build or draft length (kInvalidArgument, saying both).
Status CheckStepCosts(const StepCostTable& table, std::string_view model, std::string_view build,
                      int drafts_max);

// Measurements of one point -> their median; for profiling.
double MedianMs(std::span<double> ms);

// What one step took.
struct StepTimes {
  int draft_requests = 0;  // that drafted
  int rows = 0;            // of the target's forward
  int64_t context_tokens = 0;
  double draft_ms = 0;
  double verify_ms = 0;
  double host_ms = 0;
};

// Look-ups and refresh. Allocates in Create only. One thread at a time.
class StepCosts {
 public:
  // Steps of up to `rows_max` rows. Errors: kInvalidArgument (no points, counts that don't ascend, times that
  // are not positive numbers, all verify times equal: a flat table would make verifying everything optimal).
  static Result<StepCosts> Create(StepCostTable table, int rows_max);

  // Non-decreasing in their counts; 0 requests draft for nothing. Beyond the last measured point the last
  // slope goes on.
  double DraftMs(int requests) const;
  // [rows_max + 1]: by rows, at the smallest bucket that holds `context_tokens` (the largest, if none does).
  std::span<const double> VerifyMs(int64_t context_tokens) const;
  double HostMs() const { return table_.host_ms; }

  // Moves the points beside a measured step towards it (a moving average; a single measurement counts at most
  // twice its expected value, so that a pause of the machine does little harm). Uses what has happened only:
  // the decisions that follow stay exact.
  void Observe(const StepTimes& times);

  // As refreshed, to be written to a file.
  const StepCostTable& table() const { return table_; }

 private:
  struct Bucket {
    int64_t context_tokens = 0;
    std::vector<CostPoint>* points = nullptr;  // in table_
    std::vector<double> by_rows;               // [rows_max + 1]
  };
  StepCosts() = default;
  Bucket& BucketOf(int64_t context_tokens);

  StepCostTable table_;
  std::vector<Bucket> buckets_;
  std::vector<double> draft_by_requests_;
};

}  // namespace foresight
