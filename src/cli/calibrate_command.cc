// Fits the confidences of a draft head and measures what steps cost, for planners: two files that say which
// model, head and build they belong to.
#include <fstream>
#include <iterator>

#include "base/progress.h"
#include "cli/command.h"
#include "cli/draft_flags.h"
#include "cli/model_flags.h"
#include "engine/calibrate.h"
#include "engine/engine_access.h"
#include "engine/step_profile.h"

namespace foresight {
namespace {

struct CalibrateFlags {
  ModelFlags model;
  DraftFlags draft;
  std::string text;
  int prompt_tokens = 64;
  int64_t rounds = 4000;
  int sequences = 32;
  std::string calibration = std::string(kCalibrationFileName);
  std::string costs = "step-costs.json";
};

// Pieces of the text, each begun like a text of its own.
Result<std::vector<std::vector<TokenId>>> PromptsOf(const CalibrateFlags& flags, const Runtime& runtime) {
  const Tokenizer* tokenizer = runtime.tokenizer();
  if (tokenizer == nullptr) return NotFound("{} has no tokenizer.json", runtime.files().origin());
  std::ifstream in(flags.text, std::ios::binary);
  if (!in) return NotFound("can't read {}", flags.text);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer->Encode(text));
  std::vector<std::vector<TokenId>> prompts;
  for (size_t at = 0; at + flags.prompt_tokens <= ids.size(); at += flags.prompt_tokens) {
    std::vector<TokenId> prompt;
    if (tokenizer->bos_id()) prompt.push_back(*tokenizer->bos_id());
    prompt.insert(prompt.end(), ids.begin() + at, ids.begin() + at + flags.prompt_tokens);
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) return InvalidArgument("{}: has less than {} tokens", flags.text, flags.prompt_tokens);
  return prompts;
}

Status Write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  if (!(file << text)) return InvalidArgument("can't write {}", path);
  fmt::print("written: {}\n", path);
  return Status();
}

Status RunCalibrate(const CalibrateFlags& flags) {
  EngineOptions options = flags.model.ToOptions();
  TerminalProgress progress;
  options.progress = &progress;
  options.speculation = flags.draft.ToOptions();
  options.max_sequences = flags.sequences;
  options.kept_prefixes_max = 0;
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(options.model));
  ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Load(files, options));
  fmt::print(stderr, "{}", runtime->StartUpReport());
  if (runtime->draft_method() == DraftMethod::kNone) return NotFound("{} has no draft head", files.origin());

  ASSIGN_OR_RETURN(const StepCostTable costs,
                   ProfileSteps(*runtime, {.drafts_max = options.speculation.drafts_max,
                                           .max_sequences = options.max_sequences,
                                           .step_rows_max = options.step_rows_max,
                                           .seconds_max = 20}));
  const std::vector<CostPoint>& verify = costs.verify_ms.begin()->second;
  fmt::print("{:>6} {:>10}\n", "rows", "ms a step");
  for (const CostPoint& point : verify) fmt::print("{:6} {:10.3f}\n", point.count, point.ms);
  RETURN_IF_ERROR(Write(flags.costs, FormatStepCosts(costs)));
  if (runtime->draft_method() != DraftMethod::kDSpark) {
    fmt::print("no calibration: drafts by {} have no confidences\n",
               DraftMethodName(runtime->draft_method()));
    return Status();
  }

  ASSIGN_OR_RETURN(std::vector<std::vector<TokenId>> prompts, PromptsOf(flags, *runtime));
  ASSIGN_OR_RETURN(const CalibrationTable table, CalibrateDrafts(*runtime, {.prompts = std::move(prompts),
                                                                            .dataset = flags.text,
                                                                            .rounds = flags.rounds,
                                                                            .progress = &progress}));
  fmt::print("{:8} {:>3} {:>12} {:>11} {:>10} {:>7}\n", "regime", "at", "temperature", "ECE before",
             "ECE after", "AUROC");
  for (const RegimeCalibration& regime : table.regimes) {
    for (size_t k = 0; k < regime.temperatures.size(); ++k) {
      fmt::print("{:8} {:3} {:12.3f} {:11.4f} {:10.4f} {:7.3f}\n", SamplingRegimeName(regime.regime), k + 1,
                 regime.temperatures[k], regime.before[k].ece, regime.after[k].ece, regime.after[k].auroc);
    }
  }
  return Write(flags.calibration, FormatCalibration(table));
}

}  // namespace

void AddCalibrateCommand(CLI::App& app, Status* result) {
  auto flags = std::make_shared<CalibrateFlags>();
  CLI::App* command = app.add_subcommand(
      "calibrate", "Fit a draft head's confidences and measure what steps cost on this machine");
  flags->model.AddTo(*command);
  flags->draft.AddTo(*command);
  command->add_option("--text", flags->text, "A text file whose pieces are continued")->required();
  command->add_option("--prompt-tokens", flags->prompt_tokens, "Length of a piece")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--rounds", flags->rounds, "Rounds of drafts for each way of sampling")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_option("--sequences", flags->sequences, "Requests at a time that steps are measured for")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--calibration", flags->calibration, "File for the calibration")->capture_default_str();
  command->add_option("--costs", flags->costs, "File for the costs of steps")->capture_default_str();
  command->callback([flags, result] { *result = RunCalibrate(*flags); });
}

}  // namespace foresight
