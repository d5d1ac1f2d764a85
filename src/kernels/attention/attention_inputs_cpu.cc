#include "kernels/attention/attention_inputs.h"
#include "kernels/cpu/cpu_kernels.h"

namespace foresight::FORESIGHT_ISA {

void AttentionInputs(const KernelContext& ctx, const AttentionInputsArgs& args) {
  if (args.query) RmsNorm(ctx, *args.query);
  for (const KeyArgs& key : args.keys) Key(ctx, key);
  if (args.compressor) Compressor(ctx, *args.compressor);
  if (args.index_compressor) Compressor(ctx, *args.index_compressor);
}

}  // namespace foresight::FORESIGHT_ISA
