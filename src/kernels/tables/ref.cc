#include "kernels/kernel_table.h"

namespace foresight {

const KernelTable& RefKernels() {
  static constexpr KernelTable kTable = {
      .name = "ref",
      .description = "the definition: plain loops with float64 sums",
      .embed = EmbedRef,
      .hyper_connection_pre = HyperConnectionPreRef,
      .hyper_connection_post = HyperConnectionPostRef,
      .hyper_head = HyperHeadRef,
      .linear = LinearRef,
      .grouped_linear = GroupedLinearRef,
      .rms_norm = RmsNormRef,
      .rope_table = RopeTableRef,
      .attention_inputs = AttentionInputsRef,
      .store_keys = StoreKeysRef,
      .indexer = IndexerRef,
      .attention = AttentionRef,
      .router = RouterRef,
      .moe = MoeRef,
      .store_tap = StoreTapRef,
      .load_taps = LoadTapsRef,
      .sequential_head = SequentialHeadRef,
      .sample = SampleRef,
      .logit_margins = LogitMarginsRef,
      .place_tokens = PlaceTokensRef,
      .plan_drafts = PlanDraftsRef,
      .place_draws = PlaceDrawsRef,
  };
  return kTable;
}

}  // namespace foresight
