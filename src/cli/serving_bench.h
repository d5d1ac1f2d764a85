// Times requests that an engine serves at once: the same ones by several configurations, which take turns of
// a twentieth of a second.
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "cli/draft_heads.h"
#include "cli/turns.h"
#include "foresight/config.h"
#include "foresight/engine.h"
#include "foresight/request.h"

namespace foresight {

// One configuration of drafter and planner.
struct SpecSetup {
  std::string name;
  SpeculationOptions speculation;
};

// None, MTP-1 chained to k, DSpark with k drafts.
SpecSetup NoDraftSetup();
SpecSetup MtpSetup(int k);
SpecSetup DSparkSetup(int k, std::string head);

// Drafts of always the same length, or, with a planner, DSpark's of the whole block.
struct FixedDrafts {
  DraftChoice draft = DraftChoice::kMtp;  // or kDSpark
  int length = 1;
  std::string planner = {};
};
// "mtp:2", "dspark:5", "dspark:sync". Errors: kInvalidArgument (another drafter, a length out of 1..5, no
// such planner).
Result<FixedDrafts> ParseFixedDrafts(std::string_view text);
// None, the fixed ones that there are heads for, and DSpark with the planner "auto" (without DSpark, MTP-1
// with it and drafts of the longest of its fixed lengths); and none again, in an engine of its own: how far
// its ratio is from 1 tells what others' ratios may owe to chance.
std::vector<SpecSetup> ServedSetups(const std::vector<FixedDrafts>& fixed, const DraftHeads& heads);

// What an engine did in a repetition. Setups that do the same work have the same counts.
struct WorkDone {
  int64_t tokens = 0;   // of answers
  int64_t steps = 0;    // of the engine
  int64_t rows = 0;     // of those steps
  int64_t drafted = 0;  // verified or not
  int64_t verified = 0;
  int64_t accepted = 0;

  // Requests that drew in a step, over all steps: each gets a token beside the accepted drafts.
  int64_t draws() const { return tokens - accepted; }
};

// One timing: all requests of a run, `concurrency` at a time.
struct SpeedRow {
  std::string setup;
  std::string domain;  // "all" or one
  int concurrency = 0;
  std::vector<double> tokens_per_second;  // of every repetition, in order
  std::vector<double> ratio_to_none;      // in the same repetition
  RatioEstimate ratio;                    // to none, of all repetitions' turns
  std::vector<WorkDone> work;             // of every repetition

  // Of all repetitions, by request and step that draws: rows, which are 1 + verified drafts; drafts, verified
  // or not; tokens.
  double rows_per_request() const { return 1 + PerDraw(&WorkDone::verified); }
  double drafted_per_request() const { return PerDraw(&WorkDone::drafted); }
  double accepted_length() const { return 1 + PerDraw(&WorkDone::accepted); }
  double PerDraw(int64_t WorkDone::*count) const;
  double median_tokens_per_second() const;
  double median_user_speed() const { return median_tokens_per_second() / concurrency; }  // of one request
};

// Submits them and waits. None begins before all are queued, so that whose prompts share a step doesn't
// depend on how quickly they come. Errors: the first one that ended a request; kCancelled once `cancel`, if
// there is one, was set.
Result<std::vector<RequestResult>> RunRequests(Engine& engine, const std::vector<Request>& requests,
                                               const std::atomic<bool>* cancel);

// Makes answers end one by one, as they do in serving, after half to all of their tokens. Answers of one
// length that begin together end together, their successors' prompts share steps, and whatever takes them out
// of step seems to cost more than it does.
void SpreadLengths(std::span<Request> requests);

struct SpeedRun {
  std::vector<SpecSetup> setups;  // ratios are to the first one
  std::string domain;
  int concurrency = 1;
  int repeat = 3;
  std::vector<Request> requests;
  // Borrowed until the next run. Those of a run share the machine's memory.
  std::function<Result<Engine*>(const SpecSetup&, int concurrency)> engine;
  // Gets a line for every repetition.
  std::function<void(std::string_view)> progress;
  const std::atomic<bool>* cancel = nullptr;
};

// All setups serve the requests at the same time, `repeat` times, but only one of them computes: they
// take turns (TurnTimes), in each of which all of them draw as many tokens. New engines warm up before: their
// planners learn, their devices record. A setup's time is that of its engine's steps. Errors: those of
// engines and requests; kCancelled.
Result<std::vector<SpeedRow>> MeasureSpeed(const SpeedRun& run);

}  // namespace foresight
