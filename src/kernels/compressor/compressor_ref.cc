#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/compressor/compressor.h"
#include "kernels/norm_rope/norm_rope.h"
#include "kernels/norm_rope/rotate.h"

namespace foresight {
namespace {

// The compressor's rows of one sequence by position: the step's own, or those the ring keeps.
struct Rows {
  const CompressorArgs& args;
  const SequenceRows& sequence;
  const RingView& ring;
  int64_t width;  // c*n

  const float* Kept(int64_t position) const { return reinterpret_cast<const float*>(ring[position]); }
  int64_t Row(int64_t position) const { return sequence.first_row + position - sequence.first_position; }
  const float* A(int64_t position) const {
    return position >= sequence.first_position ? args.a + Row(position) * width : Kept(position);
  }
  const float* B(int64_t position) const {
    return position >= sequence.first_position ? args.b + Row(position) * width : Kept(position) + width;
  }
};

// Softmax-pools channel `i` over the window's items: e = sum softmax(b) * a, one softmax per channel.
double Pool(const Rows& rows, int64_t s, int ratio, int dim, int i) {
  const bool overlap = ratio == 4;
  const int64_t begin = overlap && s > 0 ? (s - 1) * ratio : s * ratio;
  const int64_t end = (s + 1) * ratio;
  // The previous window contributes the first half of the channels, the current one the second (trap 19).
  auto channel = [&](int64_t t) { return overlap && t >= s * ratio ? dim + i : i; };
  double top = -std::numeric_limits<double>::infinity();
  for (int64_t t = begin; t < end; ++t) top = std::max<double>(top, rows.B(t)[channel(t)]);
  double sum = 0;
  double weighted = 0;
  for (int64_t t = begin; t < end; ++t) {
    const double e = std::exp(rows.B(t)[channel(t)] - top);
    sum += e;
    weighted += e * rows.A(t)[channel(t)];
  }
  return weighted / sum;
}

}  // namespace

void CompressorRef(const KernelContext& ctx, const CompressorArgs& args) {
  const int64_t width = args.ape.cols;
  const int pairs = args.rope_dim / 2;
  ArenaScope scope(*ctx.scratch);
  float* entry = ctx.scratch->Allocate<float>(args.dim);
  float* cos = ctx.scratch->Allocate<float>(pairs);
  float* sin = ctx.scratch->Allocate<float>(pairs);
  for (const SequenceRows& sequence : args.sequences) {
    const RingView& ring =
        args.for_indexer ? sequence.cache.index_compressor_rows : sequence.cache.compressor_rows;
    const Rows rows{args, sequence, ring, width};
    const int64_t begin = sequence.first_position;
    const int64_t end = begin + sequence.num_rows;
    for (int64_t p = begin; p < end; ++p) {
      float* b = args.b + rows.Row(p) * width;
      for (int64_t i = 0; i < width; ++i) b[i] += args.ape.f32()[(p % args.ratio) * width + i];
    }
    for (int64_t s = begin / args.ratio; (s + 1) * args.ratio <= end; ++s) {
      for (int i = 0; i < args.dim; ++i) {
        entry[i] = static_cast<float>(Pool(rows, s, args.ratio, args.dim, i));
        if (ctx.faithful()) entry[i] = RoundBf16(entry[i]);
      }
      RmsNormRef(
          ctx,
          {.rows = 1, .dim = args.dim, .x = entry, .weight = args.norm, .eps = args.norm_eps, .out = entry});
      const int64_t position = s * args.ratio;
      const AngleTable angles = {args.frequencies, cos, sin};
      RopeTableRef(ctx, {.rows = 1, .pairs = pairs, .positions = &position, .tables = {&angles, 1}});
      Rotate(entry + args.dim - args.rope_dim, pairs, cos, sin);
      if (ctx.faithful()) std::transform(entry, entry + args.dim, entry, RoundBf16);
      if (args.for_indexer) {
        EncodeIndexKey(args.index_key, entry, sequence.cache.index_keys[s]);
      } else {
        EncodeEntry(args.entry, entry, sequence.cache.compressed[s]);
      }
    }
    for (int64_t p = std::max(begin, end - ring.slots); p < end; ++p) {
      float* kept = reinterpret_cast<float*>(ring[p]);
      std::memcpy(kept, rows.A(p), width * sizeof(float));
      std::memcpy(kept + width, rows.B(p), width * sizeof(float));
    }
  }
}

}  // namespace foresight
