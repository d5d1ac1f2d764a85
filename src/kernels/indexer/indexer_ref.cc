#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/indexer/indexer.h"
#include "kernels/norm_rope/rotate.h"
#include "tensor/formats.h"

namespace foresight {
namespace {

constexpr int kRatio = 4;

// The query as the keys are stored: rotated and, for packed keys, transformed and rounded like them.
void PrepareQuery(const IndexerArgs& args, bool faithful, int64_t t) {
  const int dim = args.key.dim;
  const int pairs = args.rope_dim / 2;
  for (int h = 0; h < args.heads; ++h) {
    float* q = args.iq + (t * args.heads + h) * dim;
    Rotate(q + dim - args.rope_dim, pairs, args.cos + t * pairs, args.sin + t * pairs);
    if (faithful) std::transform(q, q + dim, q, RoundBf16);
    if (args.key.format == CacheFormat::kPacked) {
      Hadamard(q, dim);
      std::transform(q, q + dim, q, RoundBf16);
      Fp4RoundTrip(q, dim, 32);
    }
  }
}

}  // namespace

void IndexerRef(const KernelContext& ctx, const IndexerArgs& args) {
  const int dim = args.key.dim;
  const double factor = 1.0 / std::sqrt(static_cast<double>(dim) * args.heads);
  for (const SequenceRows& sequence : args.sequences) {
    const int64_t end = sequence.first_position + sequence.num_rows;
    ArenaScope scope(*ctx.scratch);
    float* keys = ctx.scratch->Allocate<float>(end / kRatio * dim);
    for (int64_t s = 0; s < end / kRatio; ++s)
      DecodeIndexKey(args.key, sequence.cache.index_keys[s], keys + s * dim);
    double* score = ctx.scratch->Allocate<double>(end / kRatio);
    int32_t* order = ctx.scratch->Allocate<int32_t>(end / kRatio);
    for (int i = 0; i < sequence.num_rows; ++i) {
      const int64_t t = sequence.first_row + i;
      const int64_t visible = (sequence.first_position + i + 1) / kRatio;
      int32_t* picks = args.picks + t * args.topk;
      const int64_t count = std::min<int64_t>(visible, args.topk);
      std::fill(picks + count, picks + args.topk, -1);
      if (visible <= args.topk) {
        std::iota(picks, picks + visible, 0);
        continue;
      }
      PrepareQuery(args, ctx.faithful(), t);
      for (int64_t s = 0; s < visible; ++s) {
        score[s] = 0;
        for (int h = 0; h < args.heads; ++h) {
          const float* q = args.iq + (t * args.heads + h) * dim;
          const double dot = std::inner_product(q, q + dim, keys + s * dim, 0.0);
          score[s] += static_cast<double>(args.w[t * args.heads + h]) * factor * std::max(dot, 0.0);
        }
      }
      std::iota(order, order + visible, 0);
      std::partial_sort(order, order + count, order + visible, [&](int32_t x, int32_t y) {
        return score[x] != score[y] ? score[x] > score[y] : x < y;
      });
      std::sort(order, order + count);
      std::copy(order, order + count, picks);
    }
  }
}

}  // namespace foresight
