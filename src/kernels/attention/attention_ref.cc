#include <algorithm>
#include <cmath>

#include "base/thread_pool.h"
#include "kernels/attention/attention.h"
#include "kernels/norm_rope/rotate.h"
#include "kernels/padding.h"

namespace foresight {
namespace {

// Decodes the keys that the row at `position` sees into keys [*, d], in their one order; returns how many.
int64_t GatherKeys(const AttentionArgs& args, const SequenceRows& sequence, int64_t position, float* keys) {
  const int dim = args.layout.dim;
  int64_t count = 0;
  const RawRange raw = VisibleRaw(args, sequence, position);
  for (int64_t p = raw.first; p < raw.end; ++p) {
    const int64_t row = sequence.first_row + p - sequence.first_position;
    const std::byte* entry =
        p >= sequence.first_position ? args.entries + row * args.layout.bytes() : sequence.cache.window[p];
    DecodeEntry(args.layout, entry, keys + count++ * dim);
  }
  if (args.compressed == CompressedKeys::kAll) {
    for (int64_t s = 0; s < (position + 1) / args.ratio; ++s) {
      DecodeEntry(args.layout, sequence.cache.compressed[s], keys + count++ * dim);
    }
  }
  if (args.compressed == CompressedKeys::kPicked) {
    const int64_t row = sequence.first_row + position - sequence.first_position;
    const int32_t* picks = args.picks + row * args.topk;
    for (int i = 0; i < args.topk && picks[i] >= 0; ++i) {
      DecodeEntry(args.layout, sequence.cache.compressed[picks[i]], keys + count++ * dim);
    }
  }
  return count;
}

int64_t MaxKeys(const AttentionArgs& args) {
  int64_t end = 0;
  int64_t raw = args.window;
  for (const SequenceRows& s : args.sequences) {
    end = std::max(end, s.first_position + s.num_rows);
    if (args.raw == RawKeys::kBlock) raw = std::max(raw, int64_t{args.window} + s.num_rows);
  }
  switch (args.compressed) {
    case CompressedKeys::kNone:
      return raw;
    case CompressedKeys::kPicked:
      return raw + args.topk;
    case CompressedKeys::kAll:
      return raw + end / args.ratio;
  }
  return 0;
}

}  // namespace

void AttentionRef(const KernelContext& ctx, const AttentionArgs& args) {
  QueryRef(ctx, QueriesOf(args));
  const int dim = args.layout.dim;
  const int pairs = args.layout.rope_dim / 2;
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  const int64_t max_keys = MaxKeys(args);
  ArenaScope scope(*ctx.scratch);
  float* key_space = ctx.scratch->Allocate<float>(ctx.pool->num_threads() * max_keys * dim);
  double* logit_space = ctx.scratch->Allocate<double>(ctx.pool->num_threads() * max_keys);
  for (const SequenceRows& sequence : args.sequences) {
    ctx.pool->ParallelFor(sequence.num_rows, [&](int64_t i, int thread) {
      float* keys = key_space + thread * max_keys * dim;
      double* logits = logit_space + thread * max_keys;
      const int64_t t = sequence.first_row + i;
      const int64_t count = GatherKeys(args, sequence, sequence.first_position + i, keys);
      for (int h = 0; h < args.heads; ++h) {
        const float* q = args.q.f32() + (t * args.heads + h) * dim;
        double top = args.sink[h];
        for (int64_t s = 0; s < count; ++s) {
          double dot = 0;
          for (int c = 0; c < dim; ++c) dot += static_cast<double>(q[c]) * keys[s * dim + c];
          logits[s] = dot * scale;
          top = std::max(top, logits[s]);
        }
        double denominator = std::exp(args.sink[h] - top);
        for (int64_t s = 0; s < count; ++s) {
          logits[s] = std::exp(logits[s] - top);
          denominator += logits[s];
        }
        if (ctx.faithful()) {
          for (int64_t s = 0; s < count; ++s) logits[s] = RoundBf16(static_cast<float>(logits[s]));
        }
        float* out = args.out.f32() + (t * args.heads + h) * dim;
        for (int c = 0; c < dim; ++c) {
          double sum = 0;
          for (int64_t s = 0; s < count; ++s) sum += logits[s] * keys[s * dim + c];
          out[c] = static_cast<float>(sum / denominator);
          if (ctx.faithful()) out[c] = RoundBf16(out[c]);
        }
        float* rotary = out + dim - args.layout.rope_dim;
        RotateBack(rotary, pairs, args.cos + t * pairs, args.sin + t * pairs);
        if (ctx.faithful()) std::transform(rotary, rotary + 2 * pairs, rotary, RoundBf16);
      }
    });
  }
  CopyToPadding(args);
}

}  // namespace foresight
