#include "cli/spec_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>

#include "base/progress.h"
#include "engine/calibrate.h"
#include "engine/engine_access.h"
#include "foresight/engine.h"
#include "weights/config.h"

namespace foresight {
namespace {

using Clock = std::chrono::steady_clock;

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
    if (number.ok()) return Status();
    std::lock_guard lock(mutex_);
    --open_;
    return number.status();
  }
  // Errors: the first one that ended a request.
  Result<std::vector<RequestResult>> Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return open_ == 0; });
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
  std::vector<RequestResult> results_;
};

class SpecBench {
 public:
  explicit SpecBench(const SpecBenchOptions& options) : options_(options) {}

  Result<SpecReport> Run();

 private:
  // An engine for each setup and number of sequences, made when it is first needed.
  Result<Engine*> EngineOf(const SpecSetup& setup, int max_sequences);
  // The requests of a domain, all at once; `seconds` gets the time from the first submission to the last end.
  Result<std::vector<RequestResult>> RunRequests(Engine& engine, std::span<const PromptDomain* const> domains,
                                                 int per_domain, double temperature, double* seconds);
  // What a head's config says of it; nothing for MTP-1.
  Status DescribeHead(const std::string& setup, const ModelFiles& head, std::vector<HeadRow>* rows);
  Status MeasureReliability(SamplingRegime regime, std::vector<ReliabilityRow>* rows);
  Status MeasureAcceptance(const SpecSetup& setup, double temperature, std::vector<AcceptanceRow>* rows);
  // All setups in turn, `repeat` times, so that a drift of the machine's speed meets all of them.
  Status MeasureSpeed(std::span<const SpecSetup> setups, int concurrency, const PromptDomain* domain,
                      std::vector<SpeedRow>* rows);
  void Progress(std::string_view what) { fmt::print(stderr, "{:6.0f} s  {}\n", Seconds(), what); }
  double Seconds() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

  const SpecBenchOptions& options_;
  const Clock::time_point begin_ = Clock::now();
  std::map<std::pair<std::string, int>, std::unique_ptr<Engine>> engines_;
};

SpeculationOptions Drafting(DraftChoice draft, std::string head, int drafts_max, std::string planner) {
  return {
      .draft = draft, .draft_head = std::move(head), .drafts_max = drafts_max, .planner = std::move(planner)};
}

SpecSetup None() {
  return {"none", {.draft = DraftChoice::kNone}};
}
SpecSetup Mtp(int k) {
  return {fmt::format("mtp k={}", k), Drafting(DraftChoice::kMtp, "", k, fmt::format("static:{}", k))};
}
SpecSetup DSpark(int k) {
  return {fmt::format("dspark k={}", k),
          Drafting(DraftChoice::kDSpark, "dspark", k, fmt::format("static:{}", k))};
}

Result<Engine*> SpecBench::EngineOf(const SpecSetup& setup, int max_sequences) {
  std::unique_ptr<Engine>& engine = engines_[{setup.name, max_sequences}];
  if (engine == nullptr) {
    EngineOptions options = options_.engine;
    options.speculation = setup.speculation;
    options.max_sequences = max_sequences;
    options.kept_prefixes_max = 0;  // every run computes its prompts
    ASSIGN_OR_RETURN(engine, Engine::Load(options));
  }
  return engine.get();
}

Result<std::vector<RequestResult>> SpecBench::RunRequests(Engine& engine,
                                                          std::span<const PromptDomain* const> domains,
                                                          int per_domain, double temperature,
                                                          double* seconds) {
  std::vector<Request> requests;
  for (const PromptDomain* domain : domains) {
    for (int i = 0; i < per_domain; ++i) {
      Request request{.ignore_eos = true, .acceptance = Acceptance::kRejection, .keep_in_cache = false};
      ASSIGN_OR_RETURN(request.prompt,
                       EncodePrompt(*engine.tokenizer(), *domain, domain->texts[i % domain->texts.size()]));
      request.sampling.temperature = temperature;
      request.sampling.seed = i;
      request.sampling.max_tokens = options_.max_tokens;
      if (temperature == 0) request.acceptance = Acceptance::kCoupled;
      requests.push_back(std::move(request));
    }
  }
  Batch batch;
  const Clock::time_point start = Clock::now();
  for (size_t i = 0; i < requests.size(); ++i)
    RETURN_IF_ERROR(batch.Submit(engine, std::move(requests[i]), i));
  ASSIGN_OR_RETURN(std::vector<RequestResult> results, batch.Wait());
  if (seconds != nullptr) *seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return results;
}

Status SpecBench::MeasureAcceptance(const SpecSetup& setup, double temperature,
                                    std::vector<AcceptanceRow>* rows) {
  ASSIGN_OR_RETURN(Engine* const engine, EngineOf(setup, 8));
  for (const PromptDomain& domain : options_.domains) {
    const PromptDomain* one[] = {&domain};
    ASSIGN_OR_RETURN(const std::vector<RequestResult> results,
                     RunRequests(*engine, one, options_.prompts_per_domain, temperature, nullptr));
    AcceptanceRow row{.setup = setup.name, .temperature = temperature, .domain = domain.name, .drafts = {}};
    for (const RequestResult& r : results) {
      row.completion_tokens += r.completion_tokens - 1;
      row.steps += r.drafts.steps - 1;
      row.drafts.Add(r.drafts);
    }
    rows->push_back(std::move(row));
  }
  return Status();
}

Status SpecBench::DescribeHead(const std::string& setup, const ModelFiles& head, std::vector<HeadRow>* rows) {
  ASSIGN_OR_RETURN(const std::string_view json, head.FindText("config.json"));
  Result<ModelConfig> config = ParseModelConfig(json);
  if (!config.ok()) return config.status().WithContext(head.origin() + ": config.json");
  rows->push_back({setup, config->num_draft_layers, config->dspark.markov_rank});
  return Status();
}

Status SpecBench::MeasureReliability(SamplingRegime regime, std::vector<ReliabilityRow>* rows) {
  EngineOptions options = options_.engine;
  options.speculation = DSpark(0).speculation;
  options.max_sequences = 1;
  options.kept_prefixes_max = 0;
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(options.model));
  ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Load(files, options));
  CalibrationOptions calibration{.prompts = {}, .dataset = "", .rounds = options_.calibration_rounds};
  for (const PromptDomain& domain : options_.domains) {
    for (const std::string& text : domain.texts) {
      ASSIGN_OR_RETURN(std::vector<TokenId> prompt, EncodePrompt(*runtime->tokenizer(), domain, text));
      calibration.prompts.push_back(std::move(prompt));
    }
  }
  ASSIGN_OR_RETURN(const CollectedRounds rounds, CollectRounds(*runtime, calibration, regime));
  ReliabilityRow row{
      .fitted = Calibrate(regime, rounds.fit, rounds.held_out, "prompts"), .before = {}, .after = {}};
  const std::vector<double> ones(row.fitted.temperatures.size(), 1.0);
  row.before = foresight::MeasureReliability(rounds.held_out, ones);
  row.after = foresight::MeasureReliability(rounds.held_out, row.fitted.temperatures);
  rows->push_back(std::move(row));
  return Status();
}

Status SpecBench::MeasureSpeed(std::span<const SpecSetup> setups, int concurrency, const PromptDomain* domain,
                               std::vector<SpeedRow>* rows) {
  if (concurrency > 1 || domain == nullptr) engines_.clear();  // of other sizes
  std::vector<const PromptDomain*> domains;
  for (const PromptDomain& d : options_.domains) {
    if (domain == nullptr || &d == domain) domains.push_back(&d);
  }
  // As many requests as keep all places busy for most of the run.
  const int per_domain = std::max<int>(2, 2 * concurrency / static_cast<int>(domains.size()));
  std::vector<SpeedRow> measured;
  for (const SpecSetup& setup : setups) {
    measured.push_back({.setup = setup.name,
                        .domain = domain == nullptr ? "all" : domain->name,
                        .concurrency = concurrency,
                        .tokens_per_second = {},
                        .ratio_to_none = {}});
  }
  for (int run = -1; run < options_.repeat; ++run) {
    double none = 0;
    for (size_t i = 0; i < setups.size(); ++i) {
      ASSIGN_OR_RETURN(Engine* const engine, EngineOf(setups[i], concurrency));
      double seconds = 0;
      ASSIGN_OR_RETURN(const std::vector<RequestResult> results,
                       RunRequests(*engine, domains, per_domain, /*temperature=*/1, &seconds));
      if (run < 0) continue;  // a warm-up: the planners learn, too
      int64_t tokens = 0;
      DraftCounts drafts;
      for (const RequestResult& r : results) {
        tokens += r.completion_tokens;
        drafts.Add(r.drafts);
      }
      const double rate = static_cast<double>(tokens) / seconds;
      if (i == 0) none = rate;
      measured[i].tokens_per_second.push_back(rate);
      measured[i].ratio_to_none.push_back(rate / none);
      measured[i].verified_per_request = 1 + static_cast<double>(drafts.total_verified()) /
                                                 static_cast<double>(std::max<int64_t>(drafts.steps, 1));
    }
  }
  rows->insert(rows->end(), measured.begin(), measured.end());
  return Status();
}

Result<SpecReport> SpecBench::Run() {
  ASSIGN_OR_RETURN(Engine* const plain, EngineOf(None(), 8));
  SpecReport report;
  const Runtime& runtime = EngineAccess::runtime(*plain);
  report.model = runtime.files().origin();
  report.machine = runtime.machine().processor;
  report.threads = options_.engine.num_threads;
  report.max_tokens = options_.max_tokens;
  report.requests_per_domain = options_.prompts_per_domain;
  const std::vector<std::string> heads = runtime.files().DraftNames();
  auto have = [&](std::string_view name) {
    return std::find(heads.begin(), heads.end(), name) != heads.end();
  };
  if (!have("dspark") || !have("mtp")) {
    return NotFound("{} has no draft heads dspark and mtp to compare; there are: {}", report.model,
                    fmt::join(heads, ", "));
  }

  std::vector<SpecSetup> drafters = {{"ngram", Drafting(DraftChoice::kNgram, "", 5, "static:5")}};
  for (int k = 1; k <= 5; ++k) drafters.push_back(Mtp(k));
  for (const std::string& head : heads) {
    if (head == "mtp") continue;
    drafters.push_back({fmt::format("{} k=5", head), Drafting(DraftChoice::kDSpark, head, 5, "static:5")});
    ASSIGN_OR_RETURN(const ModelFiles head_files, runtime.files().Draft(head));
    RETURN_IF_ERROR(DescribeHead(drafters.back().name, head_files, &report.heads));
  }
  for (const std::string& path : options_.heads) {
    // With a slash, so that it is no name of the model's own.
    const std::string head = path + "/";
    ASSIGN_OR_RETURN(const ModelFiles head_files, OpenModelDirectory(head));
    drafters.push_back({fmt::format("{} k=5", path), Drafting(DraftChoice::kDSpark, head, 5, "static:5")});
    RETURN_IF_ERROR(DescribeHead(drafters.back().name, head_files, &report.heads));
  }
  for (const SpecSetup& setup : drafters) {
    for (double temperature : {1.0, 0.0}) {
      Progress(fmt::format("accepted length: {}, temperature {}", setup.name, temperature));
      RETURN_IF_ERROR(MeasureAcceptance(setup, temperature, &report.acceptance));
    }
  }
  for (int k : {1, 2, 3, 4, 5}) {
    Progress(fmt::format("block length {}", k));
    RETURN_IF_ERROR(MeasureAcceptance(DSpark(k), 1, &report.lengths));
  }
  for (double threshold : {0.0, 0.2, 0.4, 0.6, 0.8}) {
    Progress(fmt::format("confidence threshold {}", threshold));
    RETURN_IF_ERROR(MeasureAcceptance(
        {fmt::format("threshold {}", threshold),
         Drafting(DraftChoice::kDSpark, "dspark", 5, fmt::format("threshold:{}", threshold))},
        1, &report.thresholds));
  }

  for (SamplingRegime regime : {SamplingRegime::kUnit, SamplingRegime::kGreedy}) {
    Progress(fmt::format("reliability of confidences: {}", SamplingRegimeName(regime)));
    RETURN_IF_ERROR(MeasureReliability(regime, &report.reliability));
  }

  const std::vector<SpecSetup> served = {
      None(),    Mtp(1),    DSpark(1),
      DSpark(2), DSpark(5), {"dspark auto", Drafting(DraftChoice::kDSpark, "dspark", 5, "auto")}};
  for (int concurrency : options_.concurrency) {
    Progress(fmt::format("speed of {} requests at a time", concurrency));
    RETURN_IF_ERROR(MeasureSpeed(served, concurrency, nullptr, &report.load));
  }
  for (const PromptDomain& domain : options_.domains) {
    Progress(fmt::format("speed at batch 1: {}", domain.name));
    RETURN_IF_ERROR(MeasureSpeed(served, 1, &domain, &report.domains));
  }
  return report;
}

}  // namespace

double SpeedRow::median_tokens_per_second() const {
  return Median(tokens_per_second);
}
double SpeedRow::median_ratio() const {
  return Median(ratio_to_none);
}

Result<SpecReport> RunSpecBench(const SpecBenchOptions& options) {
  return SpecBench(options).Run();
}

}  // namespace foresight
