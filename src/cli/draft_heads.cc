#include "cli/draft_heads.h"

#include <algorithm>

#include "engine/draft_choice.h"

namespace foresight {
namespace {

// The head for this way of drafting that is taken when nobody names one; none: there is none.
Result<std::optional<ChosenDraft>> Find(const ModelFiles& files, DraftChoice draft) {
  Result<ChosenDraft> chosen = ChooseDraft(files, {.draft = draft});
  if (chosen.ok()) return std::optional(std::move(*chosen));
  if (chosen.status().code() == StatusCode::kNotFound) return std::optional<ChosenDraft>();
  return chosen.status();
}

}  // namespace

std::vector<std::string> DraftHeads::Missing() const {
  std::vector<std::string> missing;
  if (!dspark) missing.emplace_back("dspark");
  if (!mtp) missing.emplace_back("mtp");
  return missing;
}

Result<DraftHeads> FindDraftHeads(const ModelFiles& files) {
  DraftHeads heads;
  ASSIGN_OR_RETURN(const std::optional<ChosenDraft> mtp, Find(files, DraftChoice::kMtp));
  heads.mtp = mtp.has_value();
  ASSIGN_OR_RETURN(const std::optional<ChosenDraft> dspark, Find(files, DraftChoice::kDSpark));
  if (dspark) heads.dspark = dspark->own_head ? "" : dspark->name;
  for (const std::string& name : files.DraftNames()) {
    if (name == heads.dspark) continue;
    ASSIGN_OR_RETURN(const ChosenDraft head,
                     ChooseDraft(files, {.draft = DraftChoice::kAuto, .draft_head = name}));
    if (head.method == DraftMethod::kDSpark) heads.more_dspark.push_back(name);
  }
  // A head of a name that isn't looked for without being named.
  if (!heads.dspark && !heads.more_dspark.empty()) {
    heads.dspark = heads.more_dspark.front();
    heads.more_dspark.erase(heads.more_dspark.begin());
  }
  return heads;
}

}  // namespace foresight
