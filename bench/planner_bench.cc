// What planning a step costs on the host, by planner and number of requests; prints JSON. The bar: 256
// requests with 8 drafts each in 100 microseconds or less.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <vector>

#include "base/check.h"
#include "speculative/planner.h"

namespace foresight {
namespace {

constexpr int kDrafts = 8;
constexpr int kSteps = 400;
constexpr int kWarmUpSteps = 50;
constexpr int kRowsMax = 4096;

using Clock = std::chrono::steady_clock;

// A step's times by rows: `free` rows cost little, so that much is verified, or rows are dear.
StepCosts Costs(bool cheap) {
  StepCostTable table;
  table.host_ms = 0.2;
  table.drafts_max = kDrafts;
  table.draft_ms = {{1, 2}, {256, 6}};
  table.draft_first_ms = {{1, 1}, {256, 3}};
  if (cheap) {
    table.verify_ms[4096] = {{1, 30}, {2, 31}, {4096, 60}};
  } else {
    // The expert union of a mixture: dear at first, then nearly linear.
    table.verify_ms[4096] = {{1, 10}, {2, 13.2}, {4, 19.4}, {8, 31}, {32, 60}, {256, 120}, {4096, 1700}};
  }
  Result<StepCosts> costs = StepCosts::Create(table, kRowsMax, 256);
  CHECK(costs.ok());
  return std::move(*costs);
}

struct Figures {
  double median_us = 0;
  double p99_us = 0;
  double drafts = 0;  // verified, a step
};

// All the host does for a step: BeginStep, confidences, Plan, EndStep.
Figures Measure(const PlannerOptions& options, int requests, bool cheap) {
  const PlanningLimits limits = {.slots_max = requests, .drafts_max = kDrafts, .rows_max = kRowsMax};
  Result<StepPlanning> planning = StepPlanning::Create(options, limits, Costs(cheap));
  CHECK(planning.ok());
  std::mt19937 random(1);
  std::vector<RequestLoad> load(requests);
  for (int r = 0; r < requests; ++r) {
    load[r] = {.id = {.slot = r, .generation = 1}, .drafts_max = kDrafts, .coupled = true};
  }
  // As a confidence head gives them: each request has its level.
  std::vector<float> confidences(static_cast<size_t>(requests) * kDrafts);
  std::vector<int> accepted(requests);
  std::vector<double> times_us;
  Figures figures;
  for (int step = 0; step < kWarmUpSteps + kSteps; ++step) {
    for (int r = 0; r < requests; ++r) {
      for (int j = 0; j < kDrafts; ++j) {
        const double level = 0.5 + 0.45 * (r % 10) / 10;
        confidences[r * kDrafts + j] =
            static_cast<float>(std::pow(static_cast<double>(random() % 1000 + 1) / 1000, 1 / level - 1));
      }
    }
    const auto start = Clock::now();
    const std::span<const int> depths =
        planning->BeginStep({.requests = load, .other_rows = 0, .context_tokens = 2000});
    for (int r = 0; r < requests; ++r) {
      if (depths[r] > 0)
        planning->SetConfidences(r, {&confidences[r * kDrafts], static_cast<size_t>(depths[r])});
    }
    const std::span<const int> plan = planning->Plan();
    const auto planned = Clock::now();
    int rows = requests;
    for (int r = 0; r < requests; ++r) {
      int reached = 0;
      while (reached < plan[r] && confidences[r * kDrafts + reached] > 0.5f) ++reached;
      accepted[r] = reached;
      rows += plan[r];
    }
    const auto resumed = Clock::now();
    planning->EndStep(accepted, StepTimes{.draft_requests = requests,
                                          .draft_tokens = kDrafts,
                                          .rows = rows,
                                          .context_tokens = 2000,
                                          .draft_ms = planning->costs()->DraftMs(requests),
                                          .verify_ms = planning->costs()->VerifyMs(2000)[rows],
                                          .host_ms = 0.2});
    const auto end = Clock::now();
    if (step < kWarmUpSteps) continue;
    times_us.push_back(
        std::chrono::duration<double, std::micro>((planned - start) + (end - resumed)).count());
    figures.drafts += static_cast<double>(rows - requests) / kSteps;
  }
  std::sort(times_us.begin(), times_us.end());
  figures.median_us = times_us[kSteps / 2];
  figures.p99_us = times_us[kSteps * 99 / 100];
  return figures;
}

void Run() {
  fmt::print("{{\"drafts_max\": {}, \"steps\": {}, \"planners\": [", kDrafts, kSteps);
  const char* separator = "\n";
  for (const char* planner : {"static:8", "threshold:0.6", "sync", "lookahead", "async", "global", "auto"}) {
    for (bool cheap : {true, false}) {
      for (int requests : {1, 32, 256}) {
        const Figures figures = Measure(ParsePlanner(planner).value(), requests, cheap);
        fmt::print(
            "{}  {{\"planner\": \"{}\", \"rows\": \"{}\", \"requests\": {}, \"verified_drafts\": {:.1f}, "
            "\"median_us\": {:.1f}, \"p99_us\": {:.1f}}}",
            separator, planner, cheap ? "cheap" : "dear", requests, figures.drafts, figures.median_us,
            figures.p99_us);
        separator = ",\n";
      }
    }
  }
  fmt::print("\n]}}\n");
}

}  // namespace
}  // namespace foresight

int main() {
  foresight::Run();
}
