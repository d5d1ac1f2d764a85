// The replication of DSpark's measurements on one model: what `foresight bench spec` runs and reports
// (dspark.md 8, 9). Everything is measured in one process, on the same prompts.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "cli/prompts.h"
#include "cli/serving_bench.h"
#include "foresight/config.h"
#include "foresight/request.h"
#include "speculative/calibration_fit.h"

namespace foresight {

struct SpecReport;

struct SpecBenchOptions {
  EngineOptions engine;  // `speculation` and `max_sequences` are set by the benchmark
  std::vector<PromptDomain> domains;
  std::vector<std::string> heads;  // directories of further draft heads
  int calibration_rounds = 6000;   // of each way of sampling, for the reliability of confidences
  int prompts_per_domain = 12;
  int max_tokens = 96;
  double temperature = 1;  // of answers that are recorded
  int repeat = 3;          // of every timing
  std::vector<int> concurrency = {1, 2, 4, 8, 16, 32};
  std::vector<FixedDrafts> fixed;             // whose speed is compared with none and auto
  bool acceptance = true;                     // accepted lengths and reliability
  std::vector<int> domain_concurrency = {1};  // at which each domain's speed is measured by itself
  // A run may take long. Called at the beginning, before the speeds, and with each load and domain.
  // An error ends the run.
  std::function<Status(const SpecReport&)> keep;
  std::function<void(std::string_view)> progress;  // gets a line now and then
  const std::atomic<bool>* cancel = nullptr;       // may be set by another thread
};

// What drafting did for a set of requests.
struct AcceptanceRow {
  std::string setup;
  double temperature = 0;
  std::string domain;
  int64_t completion_tokens = 0;  // without each request's first, which its prefill draws
  int64_t steps = 0;
  DraftCounts drafts;

  // Tokens a step, the target's own included: the paper's accepted length.
  double accepted_length() const { return steps > 0 ? static_cast<double>(completion_tokens) / steps : 0; }
};

// A DSpark head that accepted lengths were measured of.
struct HeadRow {
  std::string setup;
  int stages = 0;
  int markov_rank = 0;  // 0: no sequential head, the DFlash-like baseline
};

// What the confidences of one way of sampling are worth, on prompts that the scales were not fitted on.
struct ReliabilityRow {
  RegimeCalibration fitted;
  std::vector<std::vector<ReliabilityBin>> before, after;  // [position][bins]
};

struct SpecReport {
  bool complete = false;             // false: there is more to measure
  std::vector<std::string> missing;  // drafters that the model has no head for: "dspark", "mtp"
  std::string replayed;  // what the drafts' outcomes are replayed from; empty: they are the model's own
  std::string model;
  std::string machine;
  int threads = 0;
  int max_tokens = 0;
  int requests_per_domain = 0;
  std::vector<AcceptanceRow> acceptance;    // every drafter verified in full: Table 1, Figure 2
  std::vector<AcceptanceRow> lengths;       // DSpark by block length: Figure 4
  std::vector<HeadRow> heads;               // by depth, from `acceptance`: Figure 3
  std::vector<ReliabilityRow> reliability;  // Figure 6
  std::vector<AcceptanceRow> thresholds;    // DSpark by confidence threshold: Figure 5
  std::vector<SpeedRow> load;               // by concurrency: Figures 7, 8
  std::vector<SpeedRow> domains;            // of one domain each
};

// Compares the draft heads that the model has. Errors: kNotFound (none), those of loading and of requests;
// kCancelled.
Result<SpecReport> RunSpecBench(const SpecBenchOptions& options);

std::string SpecReportJson(const SpecReport& report);
// One page without outside references: tables and plots, each beside the paper's figures.
std::string SpecReportHtml(const SpecReport& report);
// What a terminal shows.
std::string SpecReportText(const SpecReport& report);

}  // namespace foresight
