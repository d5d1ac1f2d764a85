// The routed experts of many rows in faithful numerics, on sm_90a.
#pragma once

#include "kernels/kernel_context.h"
#include "kernels/moe/moe.h"

namespace foresight::cuda {

// Whether WideExperts takes experts of such a shape.
bool HasWideExperts(const KernelContext& ctx, const MoeArgs& args);

// The whole entry but for the shared expert, whose output is `shared` [rows, D]: args.out itself, or null.
// Every value has the bits that the streaming kernel (expert_stream.cuh) gives it.
void WideExperts(const KernelContext& ctx, const MoeArgs& args, const float* shared);

// Scratch that it takes, about.
int64_t WideExpertsBytes(const MoeArgs& args);

}  // namespace foresight::cuda
