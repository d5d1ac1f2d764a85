// Which draft heads of a model a benchmark can compare.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "weights/model_files.h"

namespace foresight {

struct DraftHeads {
  // Of DSpark, as SpeculationOptions::draft_head: a name under drafts/, or empty for the model's own. The one
  // that `--draft dspark` takes, else the first that there is.
  std::optional<std::string> dspark;
  bool mtp = false;
  std::vector<std::string> more_dspark;  // further names under drafts/

  bool empty() const { return !dspark && !mtp; }
  // "dspark", "mtp".
  std::vector<std::string> Missing() const;
};

// Errors: kInvalidArgument (a head's config that can't be read).
Result<DraftHeads> FindDraftHeads(const ModelFiles& files);

}  // namespace foresight
