#include "kernels/attention/attention_inputs.h"

namespace foresight {

void AttentionInputsRef(const KernelContext& ctx, const AttentionInputsArgs& args) {
  if (args.query) RmsNormRef(ctx, *args.query);
  for (const KeyArgs& key : args.keys) KeyRef(ctx, key);
  if (args.compressor) CompressorRef(ctx, *args.compressor);
  if (args.index_compressor) CompressorRef(ctx, *args.index_compressor);
}

}  // namespace foresight
