// foresight bench spec: the replication of DSpark's measurements.

#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <optional>

#include "base/tell.h"
#include "base/text_file.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/model_flags.h"
#include "cli/replay_bench.h"
#include "cli/spec_bench.h"
#include "engine/engine_access.h"

namespace foresight {
namespace {

constexpr std::string_view kNoFixed = "none";

struct Flags {
  ModelFlags model;
  std::string synthetic, replay, record;
  int experts = 0;
  std::string prompts;
  std::string json;
  std::string html;
  std::vector<std::string> heads;
  int calibration_rounds = 6000;
  bool speeds_only = false;
  int prompts_per_domain = 12;
  int max_tokens = 96;
  double temperature = 1;
  int repeat = 3;
  std::vector<int> concurrency = {1, 2, 4, 8, 16, 32};
  std::vector<int> domain_concurrency = {1};
  bool no_domains = false;
  bool domains_only = false;
  std::vector<std::string> fixed = {"mtp:1", "mtp:2", "dspark:1", "dspark:2", "dspark:5"};
};

// Where it is asked for.
Status Write(const std::string& path, const std::string& text) {
  return path.empty() ? Status() : WriteTextFile(path, text);
}

// What is measured goes to the file as it comes, and is shown at the end, however that comes about.
class Reporting {
 public:
  explicit Reporting(const Flags& flags) : flags_(flags) {}

  void Observe(SpecBenchOptions& options) {
    CatchInterrupts();
    options.cancel = &Interrupted();
    options.progress = [this](std::string_view what) {
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin_;
      Tell("{:6.0f} s  {}\n", passed.count(), what);
    };
    options.keep = [this](const SpecReport& report) { return Keep(report); };
  }
  Status Finish(const Result<SpecReport>& report) {
    const bool cancelled = !report.ok() && report.status().code() == StatusCode::kCancelled;
    if (report.ok()) RETURN_IF_ERROR(Keep(*report));
    if (latest_ && (report.ok() || cancelled)) {
      fmt::print("{}", SpecReportText(*latest_));
      RETURN_IF_ERROR(Write(flags_.html, SpecReportHtml(*latest_)));
      for (const std::string* path : {&flags_.json, &flags_.html}) {
        if (!path->empty()) Tell("wrote {}\n", *path);
      }
    }
    return report.status();
  }

 private:
  Status Keep(const SpecReport& report) {
    latest_ = report;
    return Write(flags_.json, SpecReportJson(report));
  }

  const Flags& flags_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::optional<SpecReport> latest_;
};

Status RunReplay(const Flags& flags, SpecBenchOptions options) {
  options.engine.synthetic = flags.synthetic;
  options.engine.synthetic_experts = flags.experts;
  ASSIGN_OR_RETURN(const std::string json, ReadTextFile(flags.replay));
  Result<DraftTraces> traces = ParseDraftTraces(json);
  if (!traces.ok()) return traces.status().WithContext(flags.replay);
  Reporting reporting(flags);
  reporting.Observe(options);
  return reporting.Finish(RunReplayBench(
      {.bench = std::move(options), .traces_name = flags.replay, .traces = std::move(*traces)}));
}

Status Run(const Flags& flags) {
  for (const std::string* path : {&flags.json, &flags.html, &flags.record}) {
    if (!path->empty()) RETURN_IF_ERROR(CheckWritable(*path));
  }
  SpecBenchOptions options{
      .engine = flags.model.ToOptions(),
      .domains = {},
      .heads = flags.heads,
      .calibration_rounds = flags.calibration_rounds,
      .prompts_per_domain = flags.prompts_per_domain,
      .max_tokens = flags.max_tokens,
      .temperature = flags.temperature,
      .repeat = flags.repeat,
      .concurrency = flags.domains_only ? std::vector<int>() : flags.concurrency,
      .fixed = {},
      .acceptance = !flags.speeds_only,
      .domain_concurrency = flags.no_domains ? std::vector<int>() : flags.domain_concurrency,
      .keep = {},
      .progress = {}};
  for (const std::string& text : flags.fixed) {
    if (text == kNoFixed) continue;
    ASSIGN_OR_RETURN(const FixedDrafts fixed, ParseFixedDrafts(text));
    options.fixed.push_back(fixed);
  }
  options.engine.context_tokens = 1024;
  if (!flags.synthetic.empty()) return RunReplay(flags, std::move(options));
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(flags.model.directory));
  ASSIGN_OR_RETURN(options.domains, LoadPrompts(flags.prompts, files));
  if (!flags.record.empty()) {
    ASSIGN_OR_RETURN(const DraftTraces traces, RecordTraces(options));
    RETURN_IF_ERROR(Write(flags.record, FormatDraftTraces(traces)));
    Tell("wrote {}\n", flags.record);
    return Status();
  }
  Reporting reporting(flags);
  reporting.Observe(options);
  return reporting.Finish(RunSpecBench(options));
}

}  // namespace

void AddBenchSpecCommand(Command& bench, Status* result) {
  auto flags = std::make_shared<Flags>();
  Command command = bench.AddCommand(
      "spec",
      "Drafters and planners compared: accepted lengths, acceptance by position, speed by load and domain");
  flags->model.AddTo(command);
  command.Remove("--context");
  command.Add("--prompts", flags->prompts, "A file of prompts by domain (default: the model's prompts.json)");
  command.Add("--per-domain", flags->prompts_per_domain, "Requests of each domain for the accepted lengths")
      .Within(1, 1000)
      .ShowDefault();
  command
      .Add("-n,--max-tokens", flags->max_tokens,
           "Tokens of an answer; where speed is measured, of the longest")
      .Within(8, 512)
      .ShowDefault();
  command.Add("--repeat", flags->repeat, "How often the requests of a speed are served")
      .Within(1, 100)
      .ShowDefault();
  const Flag of_all = command.Add("--concurrency", flags->concurrency, "Requests at a time")
                          .SplitAtCommas()
                          .Within(1, 256)
                          .ShowDefault();
  const Flag by_domain = command
                             .Add("--domain-concurrency", flags->domain_concurrency,
                                  "Requests at a time where each domain's speed is measured by itself")
                             .SplitAtCommas()
                             .Within(1, 256)
                             .ShowDefault();
  const Flag no_domains =
      command.AddSwitch("--no-domains", flags->no_domains, "Leave out the speeds of each domain")
          .Excludes(by_domain);
  command.AddSwitch("--domains-only", flags->domains_only, "Leave out the speeds of all domains together")
      .Excludes(of_all)
      .Excludes(no_domains);
  const Flag record =
      command.Add("--record", flags->record,
                  "Write what drafts of dspark and mtp are like, at every position, to this file; no more");
  command.Add("--temperature,--temp", flags->temperature, "Of the recorded answers; 0: greedy")
      .Needs(record)
      .Within(0.0, 100.0)
      .ShowDefault();
  Flag synthetic = command.Add(
      "--synthetic", flags->synthetic,
      "Speed on random weights of a released shape, flash:LAYERS or pro:LAYERS, with the outcomes "
      "of a recording");
  Flag replay = command.Add("--replay", flags->replay, "The recording");
  synthetic.Needs(replay).Excludes(record);
  replay.Needs(synthetic);
  command.Add("--experts", flags->experts, "Keep only so many routed experts of a synthetic model")
      .Needs(synthetic);
  command.Add("--draft-heads", flags->heads,
              "Directories of further DSpark heads, to compare depths and kinds");
  command
      .Add("--calibration-rounds", flags->calibration_rounds,
           "Rounds for the reliability of confidences, for each way of sampling")
      .Within(100, 1'000'000)
      .ShowDefault();
  command
      .Add("--fixed", flags->fixed,
           "Drafts of a fixed length, DRAFTER:LENGTH, or of another planner, dspark:PLANNER, whose speed "
           "is compared with none and auto; none: only these two")
      .SplitAtCommas()
      .ShowDefault();
  command.AddSwitch("--speeds-only", flags->speeds_only,
                    "Leave out accepted lengths and the reliability of confidences");
  command.Add("--json", flags->json,
              "Write the figures to this file, as they come: it is whole after each load");
  command.Add("--html", flags->html, "Write a page with tables and plots to this file");
  command.OnRun([flags, result] { *result = Run(*flags); });
}

}  // namespace foresight
