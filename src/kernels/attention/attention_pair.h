// Attention on sm_90a alone; code of its own, since no later GPU runs it.
#pragma once

#include "kernels/attention/key_list.cuh"

namespace foresight::cuda {

// Packed entries of 512 values, 64 of them rotary.
void LaunchPairAttention(const KernelContext& ctx, const Attending& attending);

}  // namespace foresight::cuda
