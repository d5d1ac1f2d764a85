#include "cli/serving_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <numeric>

#include "base/check.h"
#include "engine/engine_access.h"
#include "speculative/planner.h"

namespace foresight {
namespace {

// Long beside the caches that a turn finds cold, short beside the drift of a machine.
constexpr double kTurnSeconds = 0.05;
constexpr int64_t kAllTokens = EngineAccess::kNever / 2;
constexpr std::chrono::milliseconds kCancelPoll{20};
constexpr int kDSparkDrafts = 5;

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double StepSeconds(const EngineStatistics& s) {
  return s.draft_seconds + s.model_seconds + s.draw_seconds + s.host_seconds;
}

// Requests that an engine serves together. None begins before the engine is told how far to go.
class Batch {
 public:
  explicit Batch(Engine& engine) : engine_(engine) {
    EngineAccess::StopAt(engine, 0);
    tokens_before_ = engine.statistics().generated_tokens;
  }
  // Ends them: their sinks know where this lives.
  ~Batch() {
    for (RequestNumber number : numbers_) engine_.Cancel(number);
    EngineAccess::StopAt(engine_, EngineAccess::kNever);
    std::unique_lock lock(mutex_);
    end_.wait(lock, [this] { return ended_ == std::ssize(numbers_); });
  }

  Status Submit(const std::vector<Request>& requests) {
    results_.resize(requests.size());
    for (const Request& request : requests) {
      auto sink = std::make_shared<Sink>(this, numbers_.size());
      ASSIGN_OR_RETURN(const RequestNumber number, engine_.Submit(request, std::move(sink)));
      numbers_.push_back(number);
    }
    return Status();
  }
  // Lets the engine compute until it has drawn so many of their tokens, or all of them. Returns the seconds
  // that its steps took. Errors: kCancelled once `cancel` was set.
  Result<double> DrawTokens(int64_t tokens, const std::atomic<bool>* cancel) {
    const double before = StepSeconds(engine_.statistics());
    EngineAccess::StopAt(engine_, tokens_before_ + tokens);
    for (bool at_rest = false; !at_rest;) {
      at_rest = EngineAccess::WaitUntilAtRest(engine_, kCancelPoll);
      if (cancel != nullptr && cancel->load()) return Error(StatusCode::kCancelled, "interrupted");
    }
    return StepSeconds(engine_.statistics()) - before;
  }
  // Of requests that have all ended. Errors: the first one that ended a request.
  Result<std::vector<RequestResult>> Results() {
    const std::lock_guard lock(mutex_);
    CHECK(ended_ == std::ssize(numbers_));
    for (const RequestResult& r : results_) RETURN_IF_ERROR(r.status);
    return results_;
  }

 private:
  struct Sink : EventSink {
    Sink(Batch* batch_in, size_t index_in) : batch(batch_in), index(index_in) {}
    void OnOutput(const OutputEvent&) override {}
    void OnFinish(const RequestResult& result) override {
      const std::lock_guard lock(batch->mutex_);
      batch->results_[index] = result;
      ++batch->ended_;
      batch->end_.notify_all();
    }
    Batch* batch;
    size_t index;
  };

  Engine& engine_;
  int64_t tokens_before_ = 0;
  std::vector<RequestNumber> numbers_;
  std::mutex mutex_;
  std::condition_variable end_;
  int64_t ended_ = 0;
  std::vector<RequestResult> results_;
};

WorkDone WorkBetween(const EngineStatistics& before, const EngineStatistics& after) {
  return {.tokens = after.generated_tokens - before.generated_tokens,
          .steps = after.steps - before.steps,
          .rows = after.rows - before.rows,
          .drafted = after.drafts.drafted - before.drafts.drafted,
          .verified = after.drafts.total_verified() - before.drafts.total_verified(),
          .accepted = after.drafts.total_accepted() - before.drafts.total_accepted()};
}

SpeculationOptions Drafting(DraftChoice draft, std::string head, int drafts_max, std::string planner) {
  return {
      .draft = draft, .draft_head = std::move(head), .drafts_max = drafts_max, .planner = std::move(planner)};
}

}  // namespace

SpecSetup NoDraftSetup() {
  return {"none", {.draft = DraftChoice::kNone}};
}
SpecSetup MtpSetup(int k) {
  return {fmt::format("mtp k={}", k), Drafting(DraftChoice::kMtp, "", k, fmt::format("static:{}", k))};
}
SpecSetup DSparkSetup(int k, std::string head) {
  return {fmt::format("dspark k={}", k),
          Drafting(DraftChoice::kDSpark, std::move(head), k, fmt::format("static:{}", k))};
}
Result<FixedDrafts> ParseFixedDrafts(std::string_view text) {
  const size_t colon = std::min(text.find(':'), text.size());
  const std::string_view drafter = text.substr(0, colon);
  const std::string_view length = text.substr(std::min(colon + 1, text.size()));
  if (drafter == "dspark" && length.size() > 1) {
    RETURN_IF_ERROR(ParsePlanner(length).status());
    return FixedDrafts{.draft = DraftChoice::kDSpark, .planner = std::string(length)};
  }
  if ((drafter != "mtp" && drafter != "dspark") || length.size() != 1 || length[0] < '1' || length[0] > '5') {
    return InvalidArgument("drafts of a fixed length: want mtp:LENGTH or dspark:LENGTH, 1..5, got \"{}\"",
                           text);
  }
  return FixedDrafts{.draft = drafter == "mtp" ? DraftChoice::kMtp : DraftChoice::kDSpark,
                     .length = length[0] - '0'};
}

std::vector<SpecSetup> ServedSetups(const std::vector<FixedDrafts>& fixed, const DraftHeads& heads) {
  std::vector<SpecSetup> setups = {NoDraftSetup()};
  int longest_mtp = 1;
  for (const FixedDrafts& f : fixed) {
    if (f.draft == DraftChoice::kMtp) {
      if (!heads.mtp) continue;
      setups.push_back(MtpSetup(f.length));
      longest_mtp = std::max(longest_mtp, f.length);
    } else if (heads.dspark) {
      setups.push_back(f.planner.empty()
                           ? DSparkSetup(f.length, *heads.dspark)
                           : SpecSetup{"dspark " + f.planner, Drafting(DraftChoice::kDSpark, *heads.dspark,
                                                                       kDSparkDrafts, f.planner)});
    }
  }
  if (heads.dspark) {
    setups.push_back({"dspark auto", Drafting(DraftChoice::kDSpark, *heads.dspark, kDSparkDrafts, "auto")});
  } else if (heads.mtp) {
    setups.push_back({"mtp auto", Drafting(DraftChoice::kMtp, "", longest_mtp, "auto")});
  }
  setups.push_back({"none again", NoDraftSetup().speculation});
  return setups;
}

double SpeedRow::PerDraw(int64_t WorkDone::*count) const {
  int64_t sum = 0;
  int64_t draws = 0;
  for (const WorkDone& w : work) {
    sum += w.*count;
    draws += w.draws();
  }
  return draws > 0 ? static_cast<double>(sum) / static_cast<double>(draws) : 0;
}
double SpeedRow::median_tokens_per_second() const {
  return Median(tokens_per_second);
}

Result<std::vector<RequestResult>> RunRequests(Engine& engine, const std::vector<Request>& requests,
                                               const std::atomic<bool>* cancel) {
  Batch batch(engine);
  RETURN_IF_ERROR(batch.Submit(requests));
  RETURN_IF_ERROR(batch.DrawTokens(kAllTokens, cancel).status());
  return batch.Results();
}

void SpreadLengths(std::span<Request> requests) {
  constexpr int64_t kLengths = 17;  // prime: neighbours differ
  for (size_t i = 0; i < requests.size(); ++i) {
    int64_t& tokens = *requests[i].sampling.max_tokens;
    tokens -= tokens / 2 * static_cast<int64_t>(5 * i % kLengths) / (kLengths - 1);
  }
}

namespace {

// In which the engine draws so many tokens if it is as fast as it has been so far; one of a new engine.
int64_t NumTurns(const Engine& engine, int64_t tokens) {
  const EngineStatistics s = engine.statistics();
  if (s.generated_tokens == 0) return 1;
  const double seconds =
      StepSeconds(s) * static_cast<double>(tokens) / static_cast<double>(s.generated_tokens);
  return std::clamp<int64_t>(std::llround(seconds / kTurnSeconds), 1, tokens);
}

// Serves the requests with all engines; `rows` are theirs.
Status ServeInTurns(const SpeedRun& run, std::span<Engine* const> engines, TurnTimes& times,
                    std::span<SpeedRow> rows) {
  std::vector<std::unique_ptr<Batch>> batches;
  std::vector<Worker> workers;
  std::vector<EngineStatistics> before;
  int64_t tokens = 0;
  for (const Request& request : run.requests) tokens += *request.sampling.max_tokens;
  for (Engine* engine : engines) {
    Batch& batch = *batches.emplace_back(std::make_unique<Batch>(*engine));
    RETURN_IF_ERROR(batch.Submit(run.requests));
    workers.push_back([&batch, &run](int64_t amount) { return batch.DrawTokens(amount, run.cancel); });
    before.push_back(engine->statistics());
  }
  const size_t first_turn = times.seconds(0).size();
  RETURN_IF_ERROR(times.Take(workers, tokens, NumTurns(*engines[0], tokens)));
  std::vector<double> seconds;
  for (size_t i = 0; i < engines.size(); ++i) {
    RETURN_IF_ERROR(batches[i]->Results().status());
    const std::span<const double> own = times.seconds(static_cast<int>(i)).subspan(first_turn);
    seconds.push_back(std::accumulate(own.begin(), own.end(), 0.0));
    rows[i].work.push_back(WorkBetween(before[i], engines[i]->statistics()));
    rows[i].tokens_per_second.push_back(static_cast<double>(tokens) / seconds[i]);
    rows[i].ratio_to_none.push_back(seconds[0] / seconds[i]);
  }
  return Status();
}

}  // namespace

Result<std::vector<SpeedRow>> MeasureSpeed(const SpeedRun& run) {
  std::vector<SpeedRow> rows;
  std::vector<Engine*> engines;
  for (const SpecSetup& setup : run.setups) {
    rows.push_back({.setup = setup.name,
                    .domain = run.domain,
                    .concurrency = run.concurrency,
                    .tokens_per_second = {},
                    .ratio_to_none = {},
                    .ratio = {},
                    .work = {}});
    ASSIGN_OR_RETURN(engines.emplace_back(), run.engine(setup, run.concurrency));
  }
  const int workers = static_cast<int>(engines.size());
  const std::string where = fmt::format("{} at a time, {}", run.concurrency, run.domain);
  if (engines[0]->statistics().finished == 0) {
    run.progress(fmt::format("{}: warm-up", where));
    std::vector<SpeedRow> warm_up = rows;
    TurnTimes warm_up_times(workers);
    RETURN_IF_ERROR(ServeInTurns(run, engines, warm_up_times, warm_up));
  }
  TurnTimes times(workers);
  for (int repetition = 1; repetition <= run.repeat; ++repetition) {
    RETURN_IF_ERROR(ServeInTurns(run, engines, times, rows));
    std::string speeds;
    for (const SpeedRow& row : rows) {
      speeds +=
          fmt::format("{}{} {:.1f}", speeds.empty() ? "" : ", ", row.setup, row.tokens_per_second.back());
    }
    run.progress(fmt::format("{}: {} of {}: {} tokens/s", where, repetition, run.repeat, speeds));
  }
  for (int i = 1; i < workers; ++i) rows[i].ratio = TimesFaster(times.seconds(0), times.seconds(i));
  return rows;
}

}  // namespace foresight
