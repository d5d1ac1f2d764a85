#include "cli/serving_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

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
  return setups;
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
  const Clock::time_point start = Clock::now();
  for (size_t i = 0; i < requests.size(); ++i) {
    const Status submitted = batch.Submit(engine, requests[i], i);
    if (submitted.ok()) continue;
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
                    .ratio_to_none = {}});
  }
  for (int repetition = -1; repetition < run.repeat; ++repetition) {
    double none = 0;
    for (size_t i = 0; i < run.setups.size(); ++i) {
      ASSIGN_OR_RETURN(Engine* const engine, run.engine(run.setups[i], run.concurrency));
      double seconds = 0;
      ASSIGN_OR_RETURN(const std::vector<RequestResult> results,
                       RunRequests(*engine, run.requests, &seconds, run.cancel));
      int64_t tokens = 0;
      DraftCounts drafts;
      for (const RequestResult& r : results) {
        tokens += r.completion_tokens;
        drafts.Add(r.drafts);
      }
      const double rate = static_cast<double>(tokens) / seconds;
      run.progress(fmt::format(
          "{} at a time, {}: {}, {}: {:.1f} tokens/s", run.concurrency, run.domain, rows[i].setup,
          repetition < 0 ? "warm-up" : fmt::format("{} of {}", repetition + 1, run.repeat), rate));
      if (repetition < 0) continue;  // the planners learn, too
      if (i == 0) none = rate;
      rows[i].tokens_per_second.push_back(rate);
      rows[i].ratio_to_none.push_back(rate / none);
      const auto steps = static_cast<double>(std::max<int64_t>(drafts.steps, 1));
      rows[i].verified_per_request = 1 + static_cast<double>(drafts.total_verified()) / steps;
      rows[i].drafted_per_request = static_cast<double>(drafts.drafted) / steps;
      rows[i].accepted_length = 1 + static_cast<double>(drafts.total_accepted()) / steps;
    }
  }
  return rows;
}

}  // namespace foresight
