// Holds a kernel table to an oracle's recorded results, in clean numerics (model spec 6.3: with
// teacher-forced sets).
//
// The ref table runs as it is: its logits must be the oracle's within kRefLogitTolerance, its index picks and
// greedy tokens equal; so must what a DSpark head drafts at the golden's anchors (hidden, base, corrected and
// confidence logits; greedy tokens). Any other table runs once with the oracle's index picks and the ref
// table's expert sets injected, where each position's logits must agree within kTableLogitTolerance, and once
// on its own, where set differences are counted.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/backend.h"
#include "weights/loader.h"
#include "weights/model_files.h"

namespace foresight {

// Largest |logit difference| of the ref table; logits have a standard deviation of about 3, and the smallest
// broken rule of the model shows as 3.5e-4.
inline constexpr double kRefLogitTolerance = 2e-4;
// Largest relative L2 error of one position's logits of any other table (of the confidence logits: of all
// together). Products of float32 values as sums of two bf16 ones cost some 1e-5; activations in one bf16
// value would cost 5e-3.
inline constexpr double kTableLogitTolerance = 1e-3;

struct TensorComparison {
  std::string name;
  double max_abs = 0;     // largest |difference|
  double row_l2_max = 0;  // largest relative L2 error of a row
  double tolerance = 0;   // 0: reported, not judged
  bool relative = false;  // which of the two the tolerance is for
  bool passed = true;
};

struct SetComparison {
  std::string name;  // "layers.2.topk", "layers.3.experts"
  int64_t rows = 0;
  int64_t rows_different = 0;
  int64_t items_different = 0;  // members of one set that the other lacks
  bool judged = false;
};

struct VerifyReport {
  std::string table;
  std::vector<TensorComparison> tensors;
  std::vector<SetComparison> sets;
  int greedy_tokens = 0;  // compared: up to the first whose margin is below twice the largest logit error
  int greedy_equal = 0;   // of these
  int greedy_total = 0;   // in the golden
  bool greedy_judged = false;
  int draft_tokens = 0;  // DSpark's, compared: those whose margin is at least twice the largest logit error
  int draft_equal = 0;   // of these; judged as greedy tokens are
  int draft_total = 0;   // in the golden
  std::vector<std::string> not_compared;  // golden tensors that this program doesn't know
  bool passed = true;
};

// How much of a golden is compared: its first positions, and of its greedy run the first tokens.
struct VerifyExtent {
  int64_t positions = std::numeric_limits<int64_t>::max();
  int64_t greedy_tokens = std::numeric_limits<int64_t>::max();
};

// Errors: anything that keeps the comparison from being made (no golden.safetensors, shapes that contradict
// the config); a failed comparison is a report with passed = false.
Result<VerifyReport> VerifyGolden(const LoadedModel& model, const Backend& backend, ThreadPool& pool,
                                  const VerifyExtent& extent = {});

// The table on the console; JSON for machines.
std::string ReportToText(const VerifyReport& report);
std::string ReportToJson(const VerifyReport& report);

}  // namespace foresight
