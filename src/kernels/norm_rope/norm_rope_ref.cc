#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/norm_rope/norm_rope.h"
#include "kernels/norm_rope/rotate.h"

namespace foresight {
namespace {

double InverseRms(const float* x, int dim, double eps) {
  double squares = 0;
  for (int i = 0; i < dim; ++i) squares += static_cast<double>(x[i]) * x[i];
  return 1.0 / std::sqrt(squares / dim + eps);
}

}  // namespace

void RmsNormRef(const KernelContext& ctx, const RmsNormArgs& args) {
  for (int64_t t = 0; t < args.rows; ++t) {
    const float* x = args.x + t * args.dim;
    float* out = args.out + t * args.dim;
    const double rinv = InverseRms(x, args.dim, args.eps);
    for (int i = 0; i < args.dim; ++i) {
      const float y = static_cast<float>(args.weight[i] * (x[i] * rinv));
      out[i] = ctx.faithful() ? RoundBf16(y) : y;
    }
  }
}

void RopeTableRef(const KernelContext&, const RopeTableArgs& args) {
  for (const AngleTable& table : args.tables) {
    for (int64_t t = 0; t < args.rows; ++t) {
      for (int i = 0; i < args.pairs; ++i) {
        // The float32 product is part of the trained behaviour (model spec 1.3).
        const double angle = static_cast<float>(args.positions[t]) * table.frequencies[i];
        table.cos[t * args.pairs + i] = static_cast<float>(std::cos(angle));
        table.sin[t * args.pairs + i] = static_cast<float>(std::sin(angle));
      }
    }
  }
}

void QueryRef(const KernelContext& ctx, const QueryArgs& args) {
  const int pairs = args.rope_dim / 2;
  for (int64_t t = 0; t < args.rows; ++t) {
    for (int h = 0; h < args.heads; ++h) {
      float* q = args.q + (t * args.heads + h) * args.dim;
      const double rinv = InverseRms(q, args.dim, args.eps);
      for (int i = 0; i < args.dim; ++i) q[i] = static_cast<float>(q[i] * rinv);
      Rotate(q + args.dim - args.rope_dim, pairs, args.cos + t * pairs, args.sin + t * pairs);
      if (ctx.faithful()) std::transform(q, q + args.dim, q, RoundBf16);
    }
  }
}

void KeyRef(const KernelContext& ctx, const KeyArgs& args) {
  const int dim = args.layout.dim;
  const int pairs = args.layout.rope_dim / 2;
  ArenaScope scope(*ctx.scratch);
  float* key = ctx.scratch->Allocate<float>(dim);
  for (int64_t t = 0; t < args.rows; ++t) {
    RmsNormRef(
        ctx,
        {.rows = 1, .dim = dim, .x = args.kv + t * dim, .weight = args.norm, .eps = args.eps, .out = key});
    Rotate(key + args.layout.nope(), pairs, args.cos + t * pairs, args.sin + t * pairs);
    EncodeEntry(args.layout, key, args.entries + t * args.layout.bytes());  // packed: rounds to bf16 first
  }
}

void StoreKeysRef(const KernelContext&, const StoreKeysArgs& args) {
  for (size_t k = 0; k < args.sequences.size(); ++k) {
    const SequenceRows& s = args.sequences[k];
    const RingView& ring = s.cache.window;
    const std::byte* entries = args.entries + FirstEntryOf(args, k) * ring.item_bytes;
    const int64_t count = std::min<int64_t>(s.num_rows, ring.slots);
    for (int64_t i = s.num_rows - count; i < s.num_rows; ++i) {
      std::memcpy(ring[s.first_position + i], entries + i * ring.item_bytes, ring.item_bytes);
    }
  }
}

}  // namespace foresight
