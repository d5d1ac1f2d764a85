#include "drafting/drafter.h"

#include "drafting/dspark_drafter.h"
#include "drafting/mtp_drafter.h"
#include "drafting/ngram_drafter.h"
#include "foresight/request.h"

namespace foresight {
namespace {

constexpr int kNgramDrafts = 6;
constexpr int kMtpDrafts = 3;

class NoDrafter final : public Drafter {
 public:
  DraftMethod method() const override { return DraftMethod::kNone; }
  int drafts_max() const override { return 0; }
  Status Propose(std::span<DraftRound>) override { return Status(); }
};

}  // namespace

std::string_view DraftMethodName(DraftMethod method) {
  switch (method) {
    case DraftMethod::kNone:
      return "none";
    case DraftMethod::kNgram:
      return "ngram";
    case DraftMethod::kMtp:
      return "mtp";
    case DraftMethod::kDSpark:
      return "dspark";
  }
  return "";
}

int DraftsMax(DraftMethod method, int asked, const ModelConfig& config) {
  switch (method) {
    case DraftMethod::kNone:
      return 0;
    case DraftMethod::kNgram:
      return asked > 0 ? asked : kNgramDrafts;
    case DraftMethod::kMtp:
      return asked > 0 ? asked : kMtpDrafts;
    case DraftMethod::kDSpark:
      return asked > 0 ? asked : config.dspark.block_size;
  }
  return 0;
}

Result<std::unique_ptr<Drafter>> MakeDrafter(DraftMethod method, int drafts_max, int slots_max, Model& model,
                                             SpeculatorTeam& speculators) {
  const int drafts = DraftsMax(method, drafts_max, model.config());
  if (drafts_max < 0 || drafts > kDraftPositionsMax) {
    return InvalidArgument("drafts of {} tokens: want 1..{}", drafts, kDraftPositionsMax);
  }
  switch (method) {
    case DraftMethod::kNone:
      return std::unique_ptr<Drafter>(std::make_unique<NoDrafter>());
    case DraftMethod::kNgram:
      return std::unique_ptr<Drafter>(std::make_unique<NgramLookup>(drafts, slots_max));
    case DraftMethod::kMtp:
      if (!model.weights().mtp) return InvalidArgument("drafts by MTP-1: this model has no MTP-1 block");
      return std::unique_ptr<Drafter>(std::make_unique<MtpDrafter>(drafts, slots_max, model, speculators));
    case DraftMethod::kDSpark: {
      if (!model.weights().dspark) return InvalidArgument("drafts by DSpark: this model has no DSpark head");
      const int block = model.config().dspark.block_size;
      if (drafts_max > block) {
        return InvalidArgument("drafts of {} tokens: this DSpark head was made for {}", drafts_max, block);
      }
      if (block > model.max_step_rows()) {
        return InvalidArgument("drafts by DSpark: blocks of {} in steps of {} rows", block,
                               model.max_step_rows());
      }
      return std::unique_ptr<Drafter>(std::make_unique<DSparkDrafter>(drafts, slots_max, model, speculators));
    }
  }
  return Status(StatusCode::kInternal, "a draft method without a name");
}

}  // namespace foresight
