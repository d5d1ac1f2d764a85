#include "cli/spec_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "engine/calibrate.h"
#include "engine/engine_access.h"
#include "foresight/engine.h"
#include "weights/config.h"

namespace foresight {
namespace {

class SpecBench {
 public:
  explicit SpecBench(const SpecBenchOptions& options) : options_(options) {}

  Result<SpecReport> Run();

 private:
  // An engine for each setup and number of sequences, made when it is first needed.
  Result<Engine*> EngineOf(const SpecSetup& setup, int max_sequences);
  Result<std::vector<Request>> RequestsOf(const Tokenizer& tokenizer,
                                          std::span<const PromptDomain* const> domains, int per_domain,
                                          double temperature);
  // What a head's config says of it; nothing for MTP-1.
  Status DescribeHead(const std::string& setup, const ModelFiles& head, std::vector<HeadRow>* rows);
  Status MeasureReliability(SamplingRegime regime, std::vector<ReliabilityRow>* rows);
  Status MeasureAcceptance(const SpecSetup& setup, double temperature, std::vector<AcceptanceRow>* rows);
  // Accepted lengths, what they depend on, and reliability.
  Status MeasureDrafts(const ModelFiles& model, SpecReport* report);
  // What only DSpark's drafts have: by block length, by threshold, and how far confidences can be trusted.
  Status MeasureConfidences(SpecReport* report);
  Status MeasureSpeeds(SpecReport* report);
  // `domain` null: of all together.
  Status MeasureSpeedOf(std::span<const SpecSetup> setups, int concurrency, const PromptDomain* domain,
                        std::vector<SpeedRow>* rows);

  const SpecBenchOptions& options_;
  DraftHeads heads_;
  std::map<std::pair<std::string, int>, std::unique_ptr<Engine>> engines_;
};

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

Result<std::vector<Request>> SpecBench::RequestsOf(const Tokenizer& tokenizer,
                                                   std::span<const PromptDomain* const> domains,
                                                   int per_domain, double temperature) {
  std::vector<Request> requests;
  for (const PromptDomain* domain : domains) {
    for (int i = 0; i < per_domain; ++i) {
      Request request{.ignore_eos = true, .acceptance = Acceptance::kRejection, .keep_in_cache = false};
      ASSIGN_OR_RETURN(request.prompt,
                       EncodePrompt(tokenizer, *domain, domain->texts[i % domain->texts.size()]));
      request.sampling.temperature = temperature;
      request.sampling.seed = i;
      request.sampling.max_tokens = options_.max_tokens;
      if (temperature == 0) request.acceptance = Acceptance::kCoupled;
      requests.push_back(std::move(request));
    }
  }
  return requests;
}

Status SpecBench::MeasureAcceptance(const SpecSetup& setup, double temperature,
                                    std::vector<AcceptanceRow>* rows) {
  ASSIGN_OR_RETURN(Engine* const engine, EngineOf(setup, 8));
  for (const PromptDomain& domain : options_.domains) {
    const PromptDomain* one[] = {&domain};
    ASSIGN_OR_RETURN(const std::vector<Request> requests,
                     RequestsOf(*engine->tokenizer(), one, options_.prompts_per_domain, temperature));
    ASSIGN_OR_RETURN(const std::vector<RequestResult> results,
                     RunRequests(*engine, requests, options_.cancel));
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
  const Result<ModelConfig> config = ParseModelConfig(json);
  if (!config.ok()) return config.status().WithContext(head.origin());
  rows->push_back({setup, config->num_draft_layers, config->dspark.markov_rank});
  return Status();
}

Status SpecBench::MeasureReliability(SamplingRegime regime, std::vector<ReliabilityRow>* rows) {
  EngineOptions options = options_.engine;
  options.speculation = DSparkSetup(0, *heads_.dspark).speculation;
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
  const std::vector<ConfidenceScale> as_they_are(row.fitted.scales.size());
  row.before = foresight::MeasureReliability(rounds.held_out, as_they_are);
  row.after = foresight::MeasureReliability(rounds.held_out, row.fitted.scales);
  rows->push_back(std::move(row));
  return Status();
}

Status SpecBench::MeasureSpeedOf(std::span<const SpecSetup> setups, int concurrency,
                                 const PromptDomain* domain, std::vector<SpeedRow>* rows) {
  std::vector<const PromptDomain*> domains;
  for (const PromptDomain& d : options_.domains) {
    if (domain == nullptr || &d == domain) domains.push_back(&d);
  }
  // As many requests as keep all places busy for most of the run.
  const int per_domain = std::max<int>(2, 2 * concurrency / static_cast<int>(domains.size()));
  ASSIGN_OR_RETURN(Engine* const first, EngineOf(setups[0], concurrency));
  ASSIGN_OR_RETURN(std::vector<Request> requests,
                   RequestsOf(*first->tokenizer(), domains, per_domain, /*temperature=*/1));
  SpreadLengths(requests);
  ASSIGN_OR_RETURN(const std::vector<SpeedRow> measured,
                   MeasureSpeed({.setups = {setups.begin(), setups.end()},
                                 .domain = domain == nullptr ? "all" : domain->name,
                                 .concurrency = concurrency,
                                 .repeat = options_.repeat,
                                 .requests = std::move(requests),
                                 .engine = [this](const SpecSetup& setup,
                                                  int sequences) { return EngineOf(setup, sequences); },
                                 .progress = options_.progress,
                                 .cancel = options_.cancel}));
  rows->insert(rows->end(), measured.begin(), measured.end());
  return Status();
}

Result<SpecReport> SpecBench::Run() {
  ASSIGN_OR_RETURN(Engine* const plain, EngineOf(NoDraftSetup(), 8));
  SpecReport report;
  const Runtime& runtime = EngineAccess::runtime(*plain);
  report.model = runtime.files().origin();
  if (runtime.tokenizer() == nullptr) return NotFound("{} has no tokenizer.json", report.model);
  report.machine = runtime.machine().processor;
  report.threads = options_.engine.num_threads;
  report.max_tokens = options_.max_tokens;
  report.requests_per_domain = options_.prompts_per_domain;
  ASSIGN_OR_RETURN(heads_, FindDraftHeads(runtime.files()));
  if (heads_.empty()) {
    return NotFound(
        "{} has no draft head of DSpark or MTP-1, its own or under drafts/: there is nothing to compare",
        report.model);
  }
  report.missing = heads_.Missing();
  for (const std::string& head : report.missing) {
    options_.progress(fmt::format("there is no head for {}: it isn't compared", head));
  }
  RETURN_IF_ERROR(options_.keep(report));
  if (options_.acceptance) RETURN_IF_ERROR(MeasureDrafts(runtime.files(), &report));
  RETURN_IF_ERROR(MeasureSpeeds(&report));
  report.complete = true;
  return report;
}

Status SpecBench::MeasureDrafts(const ModelFiles& model, SpecReport* report) {
  std::vector<SpecSetup> drafters = {
      {"ngram", {.draft = DraftChoice::kNgram, .drafts_max = 5, .planner = "static:5"}}};
  for (int k = 1; heads_.mtp && k <= 5; ++k) drafters.push_back(MtpSetup(k));
  if (heads_.dspark) {
    drafters.push_back(DSparkSetup(5, *heads_.dspark));
    ASSIGN_OR_RETURN(const ModelFiles head_files,
                     heads_.dspark->empty() ? Result<ModelFiles>(model) : model.Draft(*heads_.dspark));
    RETURN_IF_ERROR(DescribeHead(drafters.back().name, head_files, &report->heads));
  }
  for (const std::string& head : heads_.more_dspark) {
    // One of that name is another than the model's own.
    const std::string name = head == "dspark" ? "drafts/dspark" : head;
    drafters.push_back({fmt::format("{} k=5", name), DSparkSetup(5, head).speculation});
    ASSIGN_OR_RETURN(const ModelFiles head_files, model.Draft(head));
    RETURN_IF_ERROR(DescribeHead(drafters.back().name, head_files, &report->heads));
  }
  for (const std::string& path : options_.heads) {
    // With a slash, so that it is no name of the model's own.
    const std::string head = path + "/";
    ASSIGN_OR_RETURN(const ModelFiles head_files, OpenModelDirectory(head));
    drafters.push_back({fmt::format("{} k=5", path), DSparkSetup(5, head).speculation});
    RETURN_IF_ERROR(DescribeHead(drafters.back().name, head_files, &report->heads));
  }
  for (const SpecSetup& setup : drafters) {
    for (double temperature : {1.0, 0.0}) {
      options_.progress(fmt::format("accepted length: {}, temperature {}", setup.name, temperature));
      RETURN_IF_ERROR(MeasureAcceptance(setup, temperature, &report->acceptance));
    }
  }
  if (heads_.dspark) RETURN_IF_ERROR(MeasureConfidences(report));
  return options_.keep(*report);
}

Status SpecBench::MeasureConfidences(SpecReport* report) {
  for (int k : {1, 2, 3, 4, 5}) {
    options_.progress(fmt::format("block length {}", k));
    RETURN_IF_ERROR(MeasureAcceptance(DSparkSetup(k, *heads_.dspark), 1, &report->lengths));
  }
  for (double threshold : {0.0, 0.2, 0.4, 0.6, 0.8}) {
    options_.progress(fmt::format("confidence threshold {}", threshold));
    SpeculationOptions speculation = DSparkSetup(5, *heads_.dspark).speculation;
    speculation.planner = fmt::format("threshold:{}", threshold);
    RETURN_IF_ERROR(
        MeasureAcceptance({fmt::format("threshold {}", threshold), speculation}, 1, &report->thresholds));
  }

  for (SamplingRegime regime : {SamplingRegime::kUnit, SamplingRegime::kGreedy}) {
    options_.progress(fmt::format("reliability of confidences: {}", SamplingRegimeName(regime)));
    RETURN_IF_ERROR(MeasureReliability(regime, &report->reliability));
  }
  return Status();
}

Status SpecBench::MeasureSpeeds(SpecReport* report) {
  const std::vector<SpecSetup> served = ServedSetups(options_.fixed, heads_);
  for (int concurrency : options_.concurrency) {
    engines_.clear();  // of other sizes
    RETURN_IF_ERROR(MeasureSpeedOf(served, concurrency, nullptr, &report->load));
    RETURN_IF_ERROR(options_.keep(*report));
  }
  for (int concurrency : options_.domain_concurrency) {
    engines_.clear();
    for (const PromptDomain& domain : options_.domains) {
      RETURN_IF_ERROR(MeasureSpeedOf(served, concurrency, &domain, &report->domains));
      RETURN_IF_ERROR(options_.keep(*report));
    }
  }
  return Status();
}

}  // namespace

Result<SpecReport> RunSpecBench(const SpecBenchOptions& options) {
  return SpecBench(options).Run();
}

}  // namespace foresight
