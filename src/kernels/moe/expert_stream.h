// All experts of a step of few rows in one launch, in faithful numerics, on sm_90 and later.
#pragma once

#include "kernels/kernel_context.h"
#include "kernels/moe/moe.h"

namespace foresight::cuda {

// What is left to add up: the outputs of the slots [rows, K, D] and of the shared expert [rows, D], which may
// be null.
struct ExpertOutputs {
  const float* routed = nullptr;  // null: nothing
  const float* shared = nullptr;
};

// Whether StreamExperts takes so many rows, and such ones.
bool CanStreamExperts(const KernelContext& ctx, const MoeArgs& args);

// The whole entry; but where rows are many, only what its last sums are made of. That lies in scratch.
ExpertOutputs StreamExperts(const KernelContext& ctx, const MoeArgs& args);

}  // namespace foresight::cuda
