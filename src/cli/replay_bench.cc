#include "cli/replay_bench.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>

#include "base/tell.h"
#include "cli/draft_heads.h"
#include "engine/engine_access.h"
#include "engine/record_drafts.h"
#include "kernels/backend.h"
#include "weights/synthetic.h"
#include "weights/upload.h"

namespace foresight {
namespace {

constexpr int kDrafts = 5;

class ReplayBench {
 public:
  explicit ReplayBench(const ReplayBenchOptions& options) : options_(options) {}

  Result<SpecReport> Run();

 private:
  // Those that draft in the same way share their weights.
  struct Weights {
    LoadedModel made;
    std::shared_ptr<const DeviceWeights> placed;  // on a device of its own
  };
  Result<const Weights*> WeightsOf(DraftChoice draft);
  Result<Engine*> EngineOf(const SpecSetup& setup, int max_sequences);
  // As many answers of the trace's domain `d` as keep all places busy; of all domains when it is -1.
  std::vector<Request> RequestsOf(int d, int concurrency) const;
  Status Measure(int d, int concurrency, std::vector<SpeedRow>* rows);

  const ReplayBenchOptions& options_;
  const DraftTrace* dspark_ = nullptr;
  const DraftTrace* mtp_ = nullptr;
  Backend backend_;  // holds the weights; engines have their own
  std::map<DraftChoice, Weights> weights_;
  std::map<std::pair<std::string, int>, std::unique_ptr<Engine>> engines_;
};

Result<const ReplayBench::Weights*> ReplayBench::WeightsOf(DraftChoice draft) {
  const auto made = weights_.find(draft);
  if (made != weights_.end()) return &made->second;
  const EngineOptions& engine = options_.bench.engine;
  const std::string head = draft == DraftChoice::kDSpark ? "+dspark"
                           : draft == DraftChoice::kMtp  ? "+mtp"
                                                         : "";
  ASSIGN_OR_RETURN(const ModelConfig config,
                   ParseSyntheticSpec(engine.synthetic + head, engine.synthetic_experts));
  Weights weights{.made = MakeSyntheticModel(config, {.num_threads = engine.num_threads}), .placed = nullptr};
  if (backend_.device != nullptr) {
    ASSIGN_OR_RETURN(DeviceWeights placed, UploadWeights(weights.made.weights, *backend_.device));
    weights.placed = std::make_shared<const DeviceWeights>(std::move(placed));
  }
  return &weights_.emplace(draft, std::move(weights)).first->second;
}

Result<Engine*> ReplayBench::EngineOf(const SpecSetup& setup, int max_sequences) {
  std::unique_ptr<Engine>& engine = engines_[{setup.name, max_sequences}];
  if (engine != nullptr) return engine.get();
  EngineOptions options = options_.bench.engine;
  options.speculation = setup.speculation;
  options.max_sequences = max_sequences;
  options.kept_prefixes_max = 0;
  ASSIGN_OR_RETURN(const Weights* const weights, WeightsOf(setup.speculation.draft));
  ASSIGN_OR_RETURN(Backend backend, OpenBackend(options.device, options.table));
  ASSIGN_OR_RETURN(std::unique_ptr<Runtime> runtime,
                   Runtime::FromSynthetic(weights->made, options, std::move(backend), weights->placed));
  const DraftTrace* const trace = setup.speculation.draft == DraftChoice::kDSpark ? dspark_
                                  : setup.speculation.draft == DraftChoice::kMtp  ? mtp_
                                                                                  : nullptr;
  ASSIGN_OR_RETURN(engine, EngineAccess::MakeReplay(std::move(runtime), options, trace));
  return engine.get();
}

std::vector<Request> ReplayBench::RequestsOf(int d, int concurrency) const {
  const int num_domains = d < 0 ? static_cast<int>(dspark_->domains.size()) : 1;
  const int per_domain = std::max(1, 2 * concurrency / num_domains);
  int64_t answers = 0;
  for (const TracedDomain& domain : dspark_->domains) answers += std::ssize(domain.answers);
  std::vector<Request> requests;
  int64_t first = 0;  // answer of the domain
  for (int i = 0; i < std::ssize(dspark_->domains); ++i) {
    const int64_t count = std::ssize(dspark_->domains[i].answers);
    for (int n = 0; n < per_domain && (d < 0 || d == i); ++n) {
      Request request{.ignore_eos = true, .acceptance = Acceptance::kRejection, .keep_in_cache = false};
      // The seed is the answer's number, and one for which no other request has the same.
      request.sampling.seed = first + n % count + n / count * answers;
      request.sampling.max_tokens = options_.bench.max_tokens;
      for (int t = 0; t < options_.prompt_tokens; ++t) {
        request.prompt.push_back(static_cast<TokenId>((2 + 31 * t + 7 * *request.sampling.seed) % 100));
      }
      requests.push_back(std::move(request));
    }
    first += count;
  }
  SpreadLengths(requests);
  return requests;
}

Status ReplayBench::Measure(int d, int concurrency, std::vector<SpeedRow>* rows) {
  const std::string domain = d < 0 ? "all" : dspark_->domains[d].name;
  const DraftHeads heads{.dspark = "", .mtp = true, .more_dspark = {}};
  ASSIGN_OR_RETURN(const std::vector<SpeedRow> measured,
                   MeasureSpeed({.setups = ServedSetups(options_.bench.fixed, heads),
                                 .domain = domain,
                                 .concurrency = concurrency,
                                 .repeat = options_.bench.repeat,
                                 .requests = RequestsOf(d, concurrency),
                                 .engine = [this](const SpecSetup& setup,
                                                  int sequences) { return EngineOf(setup, sequences); },
                                 .progress = options_.bench.progress,
                                 .cancel = options_.bench.cancel}));
  rows->insert(rows->end(), measured.begin(), measured.end());
  return Status();
}

Result<SpecReport> ReplayBench::Run() {
  dspark_ = options_.traces.Find("dspark");
  mtp_ = options_.traces.Find("mtp");
  if (dspark_ == nullptr || mtp_ == nullptr) {
    return InvalidArgument("{}: want traces of dspark and of mtp", options_.traces_name);
  }
  const EngineOptions& engine = options_.bench.engine;
  ASSIGN_OR_RETURN(backend_, OpenBackend(engine.device, engine.table));
  if (engine.synthetic.find('+') != std::string::npos) {
    return InvalidArgument("{}: want a shape without a head; each drafter gets its own", engine.synthetic);
  }
  SpecReport report;
  report.replayed = fmt::format("{} ({}, temperature {})", options_.traces_name, options_.traces.model,
                                options_.traces.temperature);
  report.model = fmt::format("random weights of {}", engine.synthetic);
  if (engine.synthetic_experts > 0) report.model += fmt::format(" with {} experts", engine.synthetic_experts);
  report.threads = engine.num_threads;
  report.max_tokens = options_.bench.max_tokens;
  report.machine = DescribeMachine().processor;
  // A file that can't be written is better found out now than after the first load.
  RETURN_IF_ERROR(options_.bench.keep(report));
  for (int concurrency : options_.bench.concurrency) {
    engines_.clear();  // of other sizes
    RETURN_IF_ERROR(Measure(/*d=*/-1, concurrency, &report.load));
    RETURN_IF_ERROR(options_.bench.keep(report));
  }
  for (int concurrency : options_.bench.domain_concurrency) {
    engines_.clear();
    for (int d = 0; d < std::ssize(dspark_->domains); ++d) {
      RETURN_IF_ERROR(Measure(d, concurrency, &report.domains));
      RETURN_IF_ERROR(options_.bench.keep(report));
    }
  }
  report.complete = true;
  return report;
}

}  // namespace

Result<DraftTraces> RecordTraces(const SpecBenchOptions& options) {
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(options.engine.model));
  ASSIGN_OR_RETURN(const DraftHeads heads, FindDraftHeads(files));
  if (const std::vector<std::string> missing = heads.Missing(); !missing.empty()) {
    return NotFound("{}: a recording compares DSpark and MTP-1, and there is no head for {}", files.origin(),
                    fmt::join(missing, " and "));
  }
  DraftTraces traces{.model = files.origin(), .temperature = options.temperature, .drafters = {}};
  for (const SpecSetup& setup : {DSparkSetup(0, *heads.dspark), MtpSetup(kDrafts)}) {
    EngineOptions engine = options.engine;
    engine.speculation = setup.speculation;
    engine.max_sequences = 1;
    engine.kept_prefixes_max = 0;
    ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Load(files, engine));
    Tell("recording {}\n", DraftMethodName(runtime->draft_method()));
    if (runtime->tokenizer() == nullptr) return NotFound("{} has no tokenizer.json", files.origin());
    ASSIGN_OR_RETURN(const std::optional<CalibrationTable> table, CalibrationOf(*runtime, engine));
    RecordOptions record{.domains = {},
                         .drafts_max = setup.speculation.drafts_max,
                         .answer_tokens = options.max_tokens,
                         .temperature = options.temperature};
    for (const PromptDomain& domain : options.domains) {
      RecordDomain& prompts = record.domains.emplace_back(RecordDomain{domain.name, {}});
      const size_t count = std::min<size_t>(options.prompts_per_domain, domain.texts.size());
      for (size_t i = 0; i < count; ++i) {
        ASSIGN_OR_RETURN(std::vector<TokenId> ids,
                         EncodePrompt(*runtime->tokenizer(), domain, domain.texts[i]));
        prompts.prompts.push_back(std::move(ids));
      }
    }
    const Calibration calibration = table ? Calibration(*table) : Calibration(kDraftPositionsMax);
    ASSIGN_OR_RETURN(DraftTrace trace, RecordDrafts(*runtime, calibration, record));
    traces.drafters.push_back(std::move(trace));
  }
  return traces;
}

Result<SpecReport> RunReplayBench(const ReplayBenchOptions& options) {
  return ReplayBench(options).Run();
}

}  // namespace foresight
