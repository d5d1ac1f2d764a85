// Fits the confidences of a draft head and measures what steps cost, for planners: two files that say which
// model, head and build they belong to.

#include "base/progress.h"
#include "base/tell.h"
#include "base/text_file.h"
#include "cli/command.h"
#include "cli/draft_flags.h"
#include "cli/model_flags.h"
#include "cli/prompts.h"
#include "engine/calibrate.h"
#include "engine/engine_access.h"
#include "engine/step_profile.h"

namespace foresight {
namespace {

struct CalibrateFlags {
  ModelFlags model;
  DraftFlags draft;
  std::string text, prompts;
  int prompt_tokens = 64;
  int64_t rounds = 20'000;
  int64_t rounds_per_answer = 32;
  int sequences = 32;
  std::string calibration = std::string(kCalibrationFileName);
  std::string costs = "step-costs.json";
};

// Pieces of a text, each begun like a text of its own.
Result<std::vector<std::vector<TokenId>>> PiecesOf(const std::string& path, int64_t prompt_tokens,
                                                   const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer.Encode(text));
  std::vector<std::vector<TokenId>> prompts;
  for (int64_t at = 0; at + prompt_tokens <= std::ssize(ids); at += prompt_tokens) {
    std::vector<TokenId> prompt;
    if (tokenizer.bos_id()) prompt.push_back(*tokenizer.bos_id());
    prompt.insert(prompt.end(), ids.begin() + at, ids.begin() + at + prompt_tokens);
    prompts.push_back(std::move(prompt));
  }
  if (prompts.size() < 2) {
    return InvalidArgument("{}: want two pieces of {} tokens or more, got {} tokens", path, prompt_tokens,
                           ids.size());
  }
  return prompts;
}

// What answers are drawn from: prompts, and what they are in words.
Status ReadPrompts(const CalibrateFlags& flags, const Runtime& runtime, CalibrationOptions* options) {
  const Tokenizer* tokenizer = runtime.tokenizer();
  if (tokenizer == nullptr) return NotFound("{} has no tokenizer.json", runtime.files().origin());
  if (!flags.text.empty()) {
    options->dataset = flags.text;
    ASSIGN_OR_RETURN(options->prompts, PiecesOf(flags.text, flags.prompt_tokens, *tokenizer));
    return Status();
  }
  ASSIGN_OR_RETURN(const std::vector<PromptDomain> domains, LoadPrompts(flags.prompts, runtime.files()));
  const char* separator = "";
  for (const PromptDomain& domain : domains) {
    options->dataset += fmt::format("{}{} {}", separator, domain.texts.size(), domain.name);
    separator = ", ";
    for (const std::string& text : domain.texts) {
      ASSIGN_OR_RETURN(std::vector<TokenId> prompt, EncodePrompt(*tokenizer, domain, text));
      options->prompts.push_back(std::move(prompt));
    }
  }
  options->dataset += " prompts";
  return Status();
}

void PrintCalibration(const CalibrationTable& table) {
  fmt::print("{:8} {:>3} {:>12} {:>6} {:>6} {:>7} {:>11} {:>10} {:>9} {:>7} {:>11}\n", "regime", "at",
             "temperature", "shift", "margin", "rounds", "ECE before", "ECE after", "by chance", "AUROC",
             "AUROC limit");
  for (const RegimeCalibration& regime : table.regimes) {
    double before = 0;
    double after = 0;
    const std::string_view name = SamplingRegimeName(regime.regime);
    const size_t positions = regime.scales.size();
    for (size_t k = 0; k < positions; ++k) {
      const PositionQuality& q = regime.after[k];
      fmt::print("{:8} {:3} {:12.3f} {:6.2f} {:6.2f} {:7} {:11.4f} {:10.4f} {:9.4f} {:7.3f} {:11.3f}\n", name,
                 k + 1, regime.scales[k].temperature, regime.scales[k].shift, regime.scales[k].margin_weight,
                 q.rounds, regime.before[k].ece, q.ece, q.ece_noise, q.auroc, q.auroc_best);
      before += regime.before[k].ece / static_cast<double>(positions);
      after += q.ece / static_cast<double>(positions);
    }
    fmt::print("{:8} mean {:38.4f} {:10.4f}\n", name, before, after);
  }
}

Status WriteAndTell(const std::string& path, const std::string& text) {
  RETURN_IF_ERROR(WriteTextFile(path, text));
  fmt::print("written: {}\n", path);
  return Status();
}

Status RunCalibrate(const CalibrateFlags& flags) {
  for (const std::string* path : {&flags.costs, &flags.calibration}) RETURN_IF_ERROR(CheckWritable(*path));
  EngineOptions options = flags.model.ToOptions();
  TerminalProgress progress;
  options.progress = &progress;
  options.speculation = flags.draft.ToOptions();
  options.max_sequences = flags.sequences;
  options.kept_prefixes_max = 0;
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(options.model));
  ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Load(files, options));
  Tell("{}", runtime->StartUpReport());
  if (runtime->draft_method() == DraftMethod::kNone) return NotFound("{} has no draft head", files.origin());

  // What is wrong with them is said before the minutes that steps take.
  CalibrationOptions calibration{.prompts = {},
                                 .dataset = {},
                                 .rounds = flags.rounds,
                                 .rounds_per_answer_max = flags.rounds_per_answer,
                                 .progress = &progress};
  const bool has_confidences = runtime->draft_method() == DraftMethod::kDSpark;
  if (has_confidences) RETURN_IF_ERROR(ReadPrompts(flags, *runtime, &calibration));

  ASSIGN_OR_RETURN(const StepCostTable costs,
                   ProfileSteps(*runtime, {.max_sequences = options.max_sequences,
                                           .step_rows_max = runtime->step_rows_max(),
                                           .seconds_max = 60,
                                           .is_thorough = true}));
  fmt::print("{:>10} {:>6} {:>10}\n", "context up", "rows", "ms a step");
  for (const auto& [context, points] : costs.verify_ms) {
    for (const CostPoint& point : points) {
      fmt::print("{:10} {:6} {:10.3f}\n", context, point.count, point.ms);
    }
  }
  fmt::print("drafts of one request {:.3f} ms, the host {:.3f} ms a step\n", costs.draft_ms.front().ms,
             costs.host_ms);
  RETURN_IF_ERROR(WriteAndTell(flags.costs, FormatStepCosts(costs)));
  if (!has_confidences) {
    fmt::print("no calibration: drafts by {} have no confidences\n",
               DraftMethodName(runtime->draft_method()));
    return Status();
  }

  ASSIGN_OR_RETURN(const CalibrationTable table, CalibrateDrafts(*runtime, calibration));
  PrintCalibration(table);
  return WriteAndTell(flags.calibration, FormatCalibration(table));
}

}  // namespace

void AddCalibrateCommand(Command& app, Status* result) {
  auto flags = std::make_shared<CalibrateFlags>();
  Command command = app.AddCommand(
      "calibrate", "Fit a draft head's confidences and measure what steps cost on this machine");
  flags->model.AddTo(command);
  flags->draft.AddHeadTo(command);
  const Flag text = command.Add("--text", flags->text, "A text file whose pieces are continued");
  command
      .Add("--prompts", flags->prompts,
           "A file of prompts by domain that are continued (default: the model's prompts.json)")
      .Excludes(text);
  command.Add("--prompt-tokens", flags->prompt_tokens, "Length of a piece").Within(1, 4096).ShowDefault();
  command
      .Add("--rounds", flags->rounds,
           "Rounds of drafts for each way of sampling, about: half of the prompts fit, half judge")
      .Within(int64_t{2}, int64_t{1} << 24)
      .ShowDefault();
  command
      .Add("--rounds-per-answer", flags->rounds_per_answer,
           "At most so many of them from one answer: those are alike")
      .Within(int64_t{1}, int64_t{1} << 20)
      .ShowDefault();
  command.Add("--sequences", flags->sequences, "Requests at a time that steps are measured for")
      .Within(1, 256)
      .ShowDefault();
  command.Add("--calibration", flags->calibration, "File for the calibration").ShowDefault();
  command.Add("--costs", flags->costs, "File for the costs of steps").ShowDefault();
  command.OnRun([flags, result] { *result = RunCalibrate(*flags); });
}

}  // namespace foresight
