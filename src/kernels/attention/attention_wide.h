// Attention on sm_90a alone; code of its own, since no later GPU runs it.
#pragma once

#include "kernels/attention/key_list.cuh"

namespace foresight::cuda {

// Packed entries of 512 values, 64 of them rotary.
void LaunchPairAttention(const KernelContext& ctx, const Attending& attending);

void LaunchWideAttention(const KernelContext& ctx, const Attending& attending);

// The same by clusters of `cluster` blocks for a row and `heads` of its heads: (8, 32), (8, 64) or, for lists
// of one chunk, (4, 64).
void LaunchPanelAttention(const KernelContext& ctx, const Attending& attending, int cluster, int heads);

}  // namespace foresight::cuda
