// Attention on sm_90a alone; code of its own, since no later GPU runs it.
#pragma once

#include "kernels/attention/key_list.cuh"

namespace foresight::cuda {

// Packed entries of 512 values, 64 of them rotary.
void LaunchPairAttention(const KernelContext& ctx, const Attending& attending);

// The same by one block for a row and 64 heads, for more rows.
void LaunchWideAttention(const KernelContext& ctx, const Attending& attending);

// The same by clusters of eight blocks for a chunk of a row's list and `heads` of its heads, 32 or 64, or
// four blocks and 64 heads, for fewer rows.
void LaunchPanelAttention(const KernelContext& ctx, const Attending& attending, int cluster, int heads);

}  // namespace foresight::cuda
