#include <algorithm>
#include <cstring>

#include "kernels/taps/taps.h"
#include "tensor/formats.h"

namespace foresight {

void StoreTapRef(const KernelContext& ctx, const StoreTapArgs& args) {
  for (const SequenceRows& s : args.sequences) {
    const RingView& ring = s.cache.window;
    for (int64_t i = std::max<int64_t>(0, s.num_rows - ring.slots); i < s.num_rows; ++i) {
      const float* row = args.streams + (s.first_row + i) * args.m * args.dim;
      std::byte* to = ring[s.first_position + i];
      for (int c = 0; c < args.dim; ++c) {
        double sum = 0;
        for (int j = 0; j < args.m; ++j) sum += row[int64_t{j} * args.dim + c];
        const float mean = static_cast<float>(sum / args.m);
        if (ctx.faithful()) {
          reinterpret_cast<bf16*>(to)[args.offset + c] = FloatToBf16(mean);
        } else {
          reinterpret_cast<float*>(to)[args.offset + c] = mean;
        }
      }
    }
  }
}

void LoadTapsRef(const KernelContext& ctx, const LoadTapsArgs& args) {
  for (const SequenceRows& s : args.sequences) {
    for (int64_t i = 0; i < s.num_rows; ++i) {
      const std::byte* from = s.cache.window[s.first_position + i];
      float* to = args.out + (s.first_row + i) * args.width;
      if (!ctx.faithful()) {
        std::memcpy(to, from, static_cast<size_t>(args.width) * sizeof(float));
        continue;
      }
      for (int64_t c = 0; c < args.width; ++c) to[c] = Bf16ToFloat(reinterpret_cast<const bf16*>(from)[c]);
    }
  }
}

}  // namespace foresight
