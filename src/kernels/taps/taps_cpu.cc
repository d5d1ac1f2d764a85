#include "base/thread_pool.h"
#include "kernels/taps/taps.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/jobs.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {

// Widths are multiples of D, which the config holds to a multiple of 32.
void StoreTap(const KernelContext& ctx, const StoreTapArgs& args) {
  const Vec share = Set(1.0f / static_cast<float>(args.m));
  for (const SequenceRows& s : args.sequences) {
    const RingView& ring = s.cache.window;
    const int64_t rows = s.num_rows < ring.slots ? s.num_rows : ring.slots;
    const int64_t skipped = s.num_rows - rows;
    ForJobs(ctx, rows, rows * args.m * args.dim * 4, [&](int64_t i, int) {
      const float* row = args.streams + (s.first_row + skipped + i) * args.m * args.dim;
      std::byte* to = ring[s.first_position + skipped + i];
      for (int c = 0; c < args.dim; c += kLanes) {
        Vec sum = Load(row + c);
        for (int j = 1; j < args.m; ++j) sum = Add(sum, Load(row + int64_t{j} * args.dim + c));
        const Vec mean = Mul(sum, share);
        if (ctx.faithful()) {
          StoreBf16(reinterpret_cast<bf16*>(to) + args.offset + c, mean);
        } else {
          Store(reinterpret_cast<float*>(to) + args.offset + c, mean);
        }
      }
    });
  }
}

void LoadTaps(const KernelContext& ctx, const LoadTapsArgs& args) {
  for (const SequenceRows& s : args.sequences) {
    for (int64_t i = 0; i < s.num_rows; ++i) {
      const std::byte* from = s.cache.window[s.first_position + i];
      float* to = args.out + (s.first_row + i) * args.width;
      for (int64_t c = 0; c < args.width; c += kLanes) {
        const Vec v = ctx.faithful() ? LoadBf16(reinterpret_cast<const bf16*>(from) + c)
                                     : Load(reinterpret_cast<const float*>(from) + c);
        Store(to + c, v);
      }
    }
  }
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
