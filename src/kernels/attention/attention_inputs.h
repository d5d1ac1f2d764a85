// What a layer makes of its inputs' projections before it can attend.
#pragma once

#include <optional>
#include <span>

#include "kernels/compressor/compressor.h"
#include "kernels/norm_rope/norm_rope.h"

namespace foresight {

// Operations none of which reads what another one writes, each if it is there: the norm of the compressed
// query, the step's raw keys, of one layer or of several with as many rows each, the compressor and the
// indexer's own.
struct AttentionInputsArgs {
  std::optional<RmsNormArgs> query = {};
  std::span<const KeyArgs> keys = {};
  std::optional<CompressorArgs> compressor = {};
  std::optional<CompressorArgs> index_compressor = {};
};

void AttentionInputsRef(const KernelContext& ctx, const AttentionInputsArgs& args);

}  // namespace foresight
