#include <algorithm>

#include "kernels/attention/attention_inputs.h"
#include "kernels/compressor/compress.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/side_by_side.cuh"
#include "kernels/norm_rope/row_parts.cuh"

namespace foresight::cuda {

namespace {

constexpr size_t kKeysMax = 4;  // of a launch

// Keys of several layers.
struct KeysPart {
  KeyPart layers[kKeysMax];
  int rows = 0;
  int blocks = 0;
  int threads = 0;

  KeysPart(std::span<const KeyArgs> keys, bool faithful) {
    for (size_t i = 0; i < keys.size(); ++i) {
      layers[i] = KeyPart(keys[i], faithful);
      CHECK(layers[i].blocks == layers[0].blocks && layers[i].threads == layers[0].threads);
    }
    rows = layers[0].blocks;
    blocks = static_cast<int>(keys.size()) * rows;
    threads = layers[0].threads;
  }

  __device__ void operator()(int block) const { layers[block / rows](block % rows); }
};

}  // namespace

// The compressors first: they take longest.
void AttentionInputs(const KernelContext& ctx, const AttentionInputsArgs& args) {
  const bool faithful = ctx.faithful();
  const bool several = args.keys.size() > 1;
  for (size_t i = 0; several && i < args.keys.size(); i += kKeysMax) {
    const size_t count = std::min(args.keys.size() - i, kKeysMax);
    LaunchSideBySide<Successors::kBehindInputs>(ctx, 0, KeysPart(args.keys.subspan(i, count), faithful));
  }
  const CompressorPart compressors(args.compressor, args.index_compressor, faithful);
  // One row's queries are a product whose weights take longer to come than what is computed here.
  const bool one_row = args.query && args.query->rows == 1;
  auto* const launch =
      one_row ? LaunchSideBySide<Successors::kAtOnce, CompressorPart, KeyPart, RmsNormPart>
              : LaunchSideBySide<Successors::kBehindInputs, CompressorPart, KeyPart, RmsNormPart>;
  launch(ctx, compressors.shared_bytes(), compressors,
         several || args.keys.empty() ? KeyPart() : KeyPart(args.keys[0], faithful),
         args.query ? RmsNormPart(*args.query, faithful) : RmsNormPart());
}

}  // namespace foresight::cuda
