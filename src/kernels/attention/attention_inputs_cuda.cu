#include "kernels/attention/attention_inputs.h"
#include "kernels/compressor/compress.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/side_by_side.cuh"
#include "kernels/norm_rope/row_parts.cuh"

namespace foresight::cuda {

// The compressors first: they take longest.
void AttentionInputs(const KernelContext& ctx, const AttentionInputsArgs& args) {
  const bool faithful = ctx.faithful();
  const CompressorPart compressors(args.compressor, args.index_compressor, faithful);
  LaunchSideBySide(ctx, compressors.shared_bytes(), compressors,
                   args.key ? KeyPart(*args.key, faithful) : KeyPart(),
                   args.query ? RmsNormPart(*args.query, faithful) : RmsNormPart());
}

}  // namespace foresight::cuda
