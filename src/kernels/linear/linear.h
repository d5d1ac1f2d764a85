// Matrix products with stored weights.
//
// Row purity: an output element is a function of its own row of x and of its row of w alone, with one order
// of accumulation that depends on the weight's shape and dtype and never on the number of rows, targets or
// threads.
#pragma once

#include <span>

#include "kernels/kernel_context.h"
#include "tensor/tensor.h"

namespace foresight {

// What faithful numerics do around the product (model spec 2.1, 6.1); clean numerics do none of it. Faithful
// inputs are bf16 values already, as everything is that a model projects: a table may count on that.
enum class LinearNumerics : uint8_t {
  kProjection,        // FP8/MXFP4 w: x through act_quant with blocks of 128 first; BF16 w: x as it is; output
                      // rounded to bf16
  kUnquantizedInput,  // x as it is whatever the dtype of w; output rounded to bf16 (wo_a)
  kFloat32,           // x as it is; float32 output (compressor, router, mHC head, LM head)
};

struct LinearTarget {
  MatrixView w;          // [N, K] F32, BF16, F8_E4M3 or MXFP4
  ActivationBuffer out;  // [T, N], contiguous; bf16 with tables that pack heads, where outputs are rounded
  LinearNumerics numerics = LinearNumerics::kProjection;
};

// out = x w^T for several weights that share their input, in one call.
//
// Shapes   x [T, K] f32 · each w [N_i, K] · each out [T, N_i], all different
// Aliasing no out overlaps x or another out.
// Source   model spec 2.1 "linear", 3.2
struct LinearArgs {
  int rows = 0;  // T
  const float* x = nullptr;
  std::span<const LinearTarget> targets;
};

// Block-diagonal product (wo_a): out[t, j, :] = w_j x[t, j, :] for the groups j (model spec 2.8),
// kUnquantizedInput.
//
// Shapes   x [T, groups, K], packed as KernelTable::packs_heads says · w [groups*N, K] (group j owns rows
//          [j*N, (j+1)*N)) · out [T, groups, N] f32
struct GroupedLinearArgs {
  int rows = 0;
  int groups = 0;
  ActivationView x;
  MatrixView w;
  float* out = nullptr;
};

void LinearRef(const KernelContext& ctx, const LinearArgs& args);
void GroupedLinearRef(const KernelContext& ctx, const GroupedLinearArgs& args);

}  // namespace foresight
