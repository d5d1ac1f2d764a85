// Plans of the device are those of the planner that the host would have asked.
#include <gtest/gtest.h>

#include "kernels/cache_fixture.h"
#include "kernels/draft_plan/draft_plan_fixture.h"
#include "speculative/throughput_planners.h"

namespace foresight {
namespace {

TEST(DraftPlan, IsThePlanners) {
  constexpr int kDrafts = 7;
  std::mt19937_64 rng(3);
  KernelHost host(1);
  for (int i = 0; i < 500; ++i) {
    SCOPED_TRACE(i);
    PlannedStep step = RandomStep(1 + static_cast<int>(rng() % 64), kDrafts, /*heads_all=*/true, rng);
    for (float& logit : step.logits) {  // which no planner takes
      if (std::isnan(logit)) logit = -1e30f;
    }
    const PlannedRows rows = RunPlanRef(host.context(Numerics::kClean), step, 0);

    RoundConfidences round(64, kDrafts);
    std::vector<int> depths;
    for (const PlannedSequence& s : step.sequences) depths.push_back(s.num_drafts);
    round.Begin(depths, /*all_coupled=*/false);
    for (size_t r = 0; r < depths.size(); ++r) {
      const PlannedSequence& s = step.sequences[r];
      std::vector<float> confidences;
      for (int j = 0; j < s.num_drafts; ++j) {
        const DraftEvidence evidence = {.logit = s.logits[j * s.stride],
                                        .margin = s.margins == nullptr ? 0 : s.margins[j * s.stride]};
        confidences.push_back(static_cast<float>(step.scales[s.first_scale + j].Confidence(evidence)));
      }
      round.Set(static_cast<int>(r), confidences);
    }
    Frontier frontier(round);
    FrontierQueue queue(64);
    AdmitMostLikely(frontier, step.count, queue);
    ASSERT_TRUE(std::equal(rows.verified.begin(), rows.verified.end(), round.admitted().begin(),
                           round.admitted().end()));
  }
}

}  // namespace
}  // namespace foresight
