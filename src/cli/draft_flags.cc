#include "cli/draft_flags.h"

#include <fmt/format.h>

#include <map>

namespace foresight {
namespace {

const std::map<std::string, DraftChoice> kChoices = {{"auto", DraftChoice::kAuto},
                                                     {"none", DraftChoice::kNone},
                                                     {"ngram", DraftChoice::kNgram},
                                                     {"mtp", DraftChoice::kMtp},
                                                     {"dspark", DraftChoice::kDSpark}};
const std::map<std::string, Acceptance> kRules = {
    {"auto", Acceptance::kAuto}, {"coupled", Acceptance::kCoupled}, {"rejection", Acceptance::kRejection}};

template <typename Choice>
std::vector<std::string> Names(const std::map<std::string, Choice>& choices) {
  std::vector<std::string> names;
  for (const auto& [name, choice] : choices) names.push_back(name);
  return names;
}

}  // namespace

void DraftFlags::AddFilesTo(Command& command) {
  command.Add("--calibration", calibration, "Calibration of the head's confidences (default: its own)");
  command.Add("--step-costs", step_costs, "Costs of steps (default: measured at the start)");
}

void DraftFlags::AddHeadTo(Command& command) {
  command.Add("--draft", draft, "What drafts: auto, none, ngram (prompt look-up), mtp, dspark")
      .OneOf(Names(kChoices))
      .ShowDefault();
  command.Add("--draft-head", head, "A head of the model's drafts/, or a directory");
  command.Add("--gamma", drafts_max, "Tokens of a draft (default: as the head was made for)")
      .Within(1, kDraftPositionsMax);
}

void DraftFlags::AddTo(Command& command) {
  AddHeadTo(command);
  command
      .Add("--planner", planner,
           "How many drafts are verified: auto, static:K, threshold:P, sync, lookahead, async")
      .ShowDefault();
  command
      .Add("--accept", accept,
           "How drafts are judged: coupled (the text of a seed is the text without drafts), rejection "
           "(accepts more), auto (coupled for greedy and seeded requests)")
      .OneOf(Names(kRules))
      .ShowDefault();
}

SpeculationOptions DraftFlags::ToOptions() const {
  return {.draft = kChoices.at(draft),
          .draft_head = head,
          .drafts_max = drafts_max,
          .planner = planner,
          .acceptance = kRules.at(accept),
          .calibration_file = calibration,
          .step_costs_file = step_costs};
}

std::string DescribeDrafts(const RequestResult& result, std::string_view method) {
  const DraftCounts& drafts = result.drafts;
  if (method == "none") return {};
  if (drafts.drafted == 0) return fmt::format("drafts by {}: none were made", method);
  // The first token is the prefill's.
  const double steps = static_cast<double>(std::max<int64_t>(drafts.steps - 1, 1));
  std::string text = fmt::format("drafts by {}: {:.2f} tokens a step", method,
                                 static_cast<double>(result.completion_tokens - 1) / steps);
  const char* separator = "; accepted by position";
  for (int k = 0; k < kDraftPositionsMax && drafts.reached[k] > 0; ++k) {
    text +=
        fmt::format("{} {:.0f} %", separator,
                    100.0 * static_cast<double>(drafts.accepted[k]) / static_cast<double>(drafts.reached[k]));
    separator = "";
  }
  if (result.plain_step_seconds > 0) {
    text += fmt::format("; {:.2f}x the speed of its plain steps",
                        result.decode_tokens_per_second() * result.plain_step_seconds);
  }
  return text;
}

}  // namespace foresight
