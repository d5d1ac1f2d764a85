// Scores of packed keys on sm_90a; code of its own, since no later GPU runs it.
#pragma once

#include "kernels/indexer/packed_query.cuh"

namespace foresight::cuda {

void LaunchPackedScoresSm90a(const KernelContext& ctx, const Indexing& args, const PackedQuery* queries);

}  // namespace foresight::cuda
