#include "cli/serving_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "engine/engine_access.h"
#include "speculative/planner.h"

namespace foresight {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kCancelPoll{20};
constexpr int kDSparkDrafts = 5;

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Requests that are submitted together and waited for.
class Batch {
 public:
  Status Submit(Engine& engine, Request request, size_t index) {
    auto sink = std::make_shared<Sink>(this, index);
    {
      std::lock_guard lock(mutex_);
      ++open_;
      if (results_.size() <= index) results_.resize(index + 1);
    }
    const Result<RequestNumber> number = engine.Submit(std::move(request), std::move(sink));
    if (number.ok()) {
      numbers_.push_back(*number);
      return Status();
    }
    std::lock_guard lock(mutex_);
    --open_;
    return number.status();
  }
  // Ends them all, and returns when they have ended. Cancels without the lock, which those that end wait for.
  void Cancel(Engine& engine) {
    for (RequestNumber number : numbers_) engine.Cancel(number);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return open_ == 0; });
  }
  // Errors: the first one that ended a request; kCancelled once `cancel` was set, which ends them all.
  Result<std::vector<RequestResult>> Wait(Engine& engine, const std::atomic<bool>* cancel) {
    std::unique_lock lock(mutex_);
    while (!done_.wait_for(lock, kCancelPoll, [this] { return open_ == 0; })) {
      if (cancel == nullptr || !cancel->load()) continue;
      lock.unlock();
      Cancel(engine);
      lock.lock();
      break;
    }
    if (cancel != nullptr && cancel->load()) return Error(StatusCode::kCancelled, "interrupted");
    for (const RequestResult& r : results_) RETURN_IF_ERROR(r.status);
    return results_;
  }

 private:
  struct Sink : EventSink {
    Sink(Batch* batch_in, size_t index_in) : batch(batch_in), index(index_in) {}
    void OnOutput(const OutputEvent&) override {}
    void OnFinish(const RequestResult& result) override {
      std::lock_guard lock(batch->mutex_);
      batch->results_[index] = result;
      if (--batch->open_ == 0) batch->done_.notify_all();
    }
    Batch* batch;
    size_t index;
  };
  std::mutex mutex_;
  std::condition_variable done_;
  int open_ = 0;
  std::vector<RequestNumber> numbers_;
  std::vector<RequestResult> results_;
};

// The engine's totals once they hold so many finished requests: a moment behind the end of the last one.
EngineStatistics TotalsBehind(const Engine& engine, int64_t finished) {
  EngineStatistics totals = engine.statistics();
  for (; totals.finished < finished; totals = engine.statistics()) std::this_thread::yield();
  return totals;
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
double SpeedRow::median_ratio() const {
  return Median(ratio_to_none);
}

Result<std::vector<RequestResult>> RunRequests(Engine& engine, const std::vector<Request>& requests,
                                               double* seconds, const std::atomic<bool>* cancel) {
  Batch batch;
  Status submitted;
  EngineAccess::SetPaused(engine, true);
  for (size_t i = 0; i < requests.size() && submitted.ok(); ++i) {
    submitted = batch.Submit(engine, requests[i], i);
  }
  const Clock::time_point start = Clock::now();
  EngineAccess::SetPaused(engine, false);
  if (!submitted.ok()) {
    batch.Cancel(engine);  // its requests know where it lives
    return submitted;
  }
  ASSIGN_OR_RETURN(std::vector<RequestResult> results, batch.Wait(engine, cancel));
  if (seconds != nullptr) *seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return results;
}

void SpreadLengths(std::span<Request> requests) {
  constexpr int64_t kLengths = 17;  // prime: neighbours differ
  for (size_t i = 0; i < requests.size(); ++i) {
    int64_t& tokens = *requests[i].sampling.max_tokens;
    tokens -= tokens / 2 * static_cast<int64_t>(5 * i % kLengths) / (kLengths - 1);
  }
}

Result<std::vector<SpeedRow>> MeasureSpeed(const SpeedRun& run) {
  std::vector<SpeedRow> rows;
  for (const SpecSetup& setup : run.setups) {
    rows.push_back({.setup = setup.name,
                    .domain = run.domain,
                    .concurrency = run.concurrency,
                    .tokens_per_second = {},
                    .ratio_to_none = {},
                    .work = {}});
  }
  for (int repetition = -1; repetition < run.repeat; ++repetition) {
    for (size_t n = 0; n < rows.size(); ++n) {
      const size_t i = repetition % 2 == 0 ? n : rows.size() - 1 - n;
      ASSIGN_OR_RETURN(Engine* const engine, run.engine(run.setups[i], run.concurrency));
      const EngineStatistics before = engine->statistics();
      double seconds = 0;
      ASSIGN_OR_RETURN(const std::vector<RequestResult> results,
                       RunRequests(*engine, run.requests, &seconds, run.cancel));
      const EngineStatistics after = TotalsBehind(*engine, before.finished + std::ssize(results));
      WorkDone work{.steps = after.steps - before.steps, .rows = after.rows - before.rows};
      DraftCounts drafts;
      for (const RequestResult& r : results) {
        work.tokens += r.completion_tokens;
        drafts.Add(r.drafts);
      }
      work.drafted = drafts.drafted;
      work.verified = drafts.total_verified();
      work.accepted = drafts.total_accepted();
      const double rate = static_cast<double>(work.tokens) / seconds;
      run.progress(fmt::format(
          "{} at a time, {}: {}, {}: {:.1f} tokens/s", run.concurrency, run.domain, rows[i].setup,
          repetition < 0 ? "warm-up" : fmt::format("{} of {}", repetition + 1, run.repeat), rate));
      if (repetition < 0) continue;  // the planners learn, too
      rows[i].tokens_per_second.push_back(rate);
      rows[i].work.push_back(work);
    }
    if (repetition < 0) continue;
    for (SpeedRow& row : rows) {
      row.ratio_to_none.push_back(row.tokens_per_second.back() / rows[0].tokens_per_second.back());
    }
  }
  return rows;
}

}  // namespace foresight
