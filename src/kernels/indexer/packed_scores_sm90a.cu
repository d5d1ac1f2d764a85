#include "kernels/indexer/packed_scores.cuh"
#include "kernels/indexer/packed_scores_sm90a.h"

namespace foresight::cuda {

void LaunchPackedScoresSm90a(const KernelContext& ctx, const Indexing& args, const uint16_t* queries) {
  LaunchPackedScores</*kHopper=*/true>(ctx, args, queries);
}

}  // namespace foresight::cuda
