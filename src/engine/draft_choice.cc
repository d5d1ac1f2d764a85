#include "engine/draft_choice.h"

#include <algorithm>
#include <array>
#include <optional>

#include "speculative/planner.h"
#include "weights/config.h"

namespace foresight {
namespace {

constexpr std::array<std::string_view, 4> kBestFirst = {"dspark", "dspark-gated", "dspark-rnn", "mtp"};

// The kind of head that a config describes; none: none.
std::optional<DraftMethod> HeadOf(const ModelConfig& config) {
  if (config.has_dspark()) return DraftMethod::kDSpark;
  if (config.num_draft_layers > 0) return DraftMethod::kMtp;
  return std::nullopt;
}

Result<std::optional<DraftMethod>> HeadOf(const ModelFiles& files) {
  ASSIGN_OR_RETURN(const std::string_view json, files.FindText("config.json"));
  Result<ModelConfig> config = ParseModelConfig(json);
  if (!config.ok()) return config.status().WithContext(files.origin());
  return HeadOf(*config);
}

// The kind of head that is wanted; none: any.
std::optional<DraftMethod> Wanted(DraftChoice choice) {
  if (choice == DraftChoice::kMtp) return DraftMethod::kMtp;
  if (choice == DraftChoice::kDSpark) return DraftMethod::kDSpark;
  return std::nullopt;
}

Result<ChosenDraft> ChooseNamed(const ModelFiles& files, const SpeculationOptions& options) {
  const std::vector<std::string> names = files.DraftNames();
  const std::string& name = options.draft_head;
  const bool is_name = std::find(names.begin(), names.end(), name) != names.end();
  // What has no slash is a name; Draft tells which there are.
  const bool is_path = !is_name && name.find('/') != std::string::npos;
  ASSIGN_OR_RETURN(ModelFiles head, is_path ? OpenModelDirectory(name) : files.Draft(name));
  ASSIGN_OR_RETURN(const std::optional<DraftMethod> method, HeadOf(head));
  if (!method) return InvalidArgument("{}: its config.json describes no draft head", head.origin());
  const std::optional<DraftMethod> wanted = Wanted(options.draft);
  if (wanted && *wanted != *method) {
    return InvalidArgument("{}: is a head for {}, not for {}", head.origin(), DraftMethodName(*method),
                           DraftMethodName(*wanted));
  }
  return ChosenDraft{.method = *method, .name = name, .head = std::move(head)};
}

}  // namespace

Result<ChosenDraft> ChooseDraft(const ModelFiles& files, const SpeculationOptions& options) {
  if (options.draft == DraftChoice::kNone || options.draft == DraftChoice::kNgram) {
    if (!options.draft_head.empty()) {
      return InvalidArgument("a draft head ({}) is asked for, and drafts without one", options.draft_head);
    }
    return ChosenDraft{.method =
                           options.draft == DraftChoice::kNone ? DraftMethod::kNone : DraftMethod::kNgram};
  }
  if (!options.draft_head.empty()) return ChooseNamed(files, options);
  const std::optional<DraftMethod> wanted = Wanted(options.draft);
  ASSIGN_OR_RETURN(const std::optional<DraftMethod> own, HeadOf(files));
  if (own && (!wanted || *wanted == *own)) {
    return ChosenDraft{.method = *own, .name = "own", .own_head = true};
  }
  const std::vector<std::string> names = files.DraftNames();
  for (std::string_view name : kBestFirst) {
    if (std::find(names.begin(), names.end(), name) == names.end()) continue;
    ASSIGN_OR_RETURN(ModelFiles head, files.Draft(name));
    ASSIGN_OR_RETURN(const std::optional<DraftMethod> method, HeadOf(head));
    if (!method || (wanted && *wanted != *method)) continue;
    return ChosenDraft{.method = *method, .name = std::string(name), .head = std::move(head)};
  }
  if (wanted) return NotFound("{}: there is no draft head for {}", files.origin(), DraftMethodName(*wanted));
  return ChosenDraft{};
}

Result<int> ChooseDraftLength(DraftMethod method, const SpeculationOptions& options,
                              const ModelConfig& config) {
  ASSIGN_OR_RETURN(const PlannerOptions planner, ParsePlanner(options.planner));
  const int length = DraftsMax(method, options.drafts_max, config);
  if (planner.static_drafts <= length || method == DraftMethod::kNone) return length;
  if (options.drafts_max == 0 && method != DraftMethod::kDSpark) return planner.static_drafts;
  return InvalidArgument("planner {}: drafts have {} tokens", options.planner, length);
}

Result<ChosenDraft> ChooseSyntheticDraft(const ModelConfig& config, const SpeculationOptions& options) {
  if (!options.draft_head.empty()) return InvalidArgument("a model made in memory takes no other draft head");
  if (options.draft == DraftChoice::kNone) return ChosenDraft{};
  if (options.draft == DraftChoice::kNgram) return ChosenDraft{.method = DraftMethod::kNgram};
  const std::optional<DraftMethod> own = HeadOf(config);
  const std::optional<DraftMethod> wanted = Wanted(options.draft);
  if (wanted && own != wanted) {
    return InvalidArgument("this model made in memory has no draft head for {}", DraftMethodName(*wanted));
  }
  if (!own) return ChosenDraft{};
  return ChosenDraft{.method = *own, .name = "own", .own_head = true};
}

}  // namespace foresight
