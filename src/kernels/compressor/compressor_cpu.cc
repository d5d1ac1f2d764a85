#include <cstring>

#include "base/thread_pool.h"
#include "kernels/compressor/compressor.h"
#include "tensor/formats.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/norm_rope/rotate_cpu.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

const RingView& RingOf(const CompressorArgs& args, const SequenceRows& sequence) {
  return args.for_indexer ? sequence.cache.index_compressor_rows : sequence.cache.compressor_rows;
}

// Windows that close within the step: [first, first + count).
struct Windows {
  int64_t first = 0;
  int64_t count = 0;
};

Windows WindowsOf(const CompressorArgs& args, const SequenceRows& sequence) {
  const int64_t first = sequence.first_position / args.ratio;
  return {first, (sequence.first_position + sequence.num_rows) / args.ratio - first};
}

// What one thread needs to pool a window.
struct Scratch {
  const float** a = nullptr;  // [items] the values of an item's channels
  const float** b = nullptr;  // [items] their gates
  float* entry = nullptr;     // [n]
  float* cos = nullptr;
  float* sin = nullptr;
};

// Lists the window's items by position; returns how many.
int ListItems(const CompressorArgs& args, const SequenceRows& sequence, int64_t s, const Scratch& scratch) {
  const int64_t width = args.ape.cols;
  const bool overlap = args.ratio == 4;
  const RingView& ring = RingOf(args, sequence);
  int count = 0;
  for (int64_t t = overlap && s > 0 ? (s - 1) * args.ratio : s * args.ratio; t < (s + 1) * args.ratio; ++t) {
    // The previous window contributes the first half of the channels, the current one the second.
    const int64_t channel = overlap && t >= s * args.ratio ? args.dim : 0;
    if (t >= sequence.first_position) {
      const int64_t row = sequence.first_row + t - sequence.first_position;
      scratch.a[count] = args.a + row * width + channel;
      scratch.b[count] = args.b + row * width + channel;
    } else {
      const float* kept = reinterpret_cast<const float*>(ring[t]);
      scratch.a[count] = kept + channel;
      scratch.b[count] = kept + width + channel;
    }
    ++count;
  }
  return count;
}

// entry[i] = sum softmax(b[:, i]) * a[:, i], items in order. dim is a multiple of 16.
void Pool(const Scratch& scratch, int items, int dim) {
  for (int i = 0; i < dim; i += kLanes) {
    Vec top = Load(scratch.b[0] + i);
    for (int k = 1; k < items; ++k) top = Max(Load(scratch.b[k] + i), top);
    Vec sum = Zero();
    Vec weighted = Zero();
    for (int k = 0; k < items; ++k) {
      const Vec e = Exp(Load(scratch.b[k] + i) - top);
      sum = sum + e;
      weighted = Fma(e, Load(scratch.a[k] + i), weighted);
    }
    Store(scratch.entry + i, weighted / sum);
  }
}

void EmitEntry(const KernelContext& ctx, const CompressorArgs& args, const SequenceRows& sequence, int64_t s,
               const Scratch& scratch) {
  float* entry = scratch.entry;
  const int pairs = args.rope_dim / 2;
  Pool(scratch, ListItems(args, sequence, s, scratch), args.dim);
  if (ctx.faithful()) RoundRow(entry, args.dim);
  NormRow(entry, args.norm, args.dim, args.norm_eps, ctx.faithful(), entry);
  RopeTableRow(s * args.ratio, args.frequencies, pairs, scratch.cos, scratch.sin);
  RotateRow(entry + args.dim - args.rope_dim, pairs, scratch.cos, scratch.sin);
  if (ctx.faithful()) RoundRow(entry, args.dim);
  if (args.for_indexer) {
    EncodeIndexKey(args.index_key, entry, sequence.cache.index_keys[s]);
  } else {
    EncodeEntryRow(args.entry, entry, sequence.cache.compressed[s]);
  }
}

}  // namespace

void Compressor(const KernelContext& ctx, const CompressorArgs& args) {
  const int64_t width = args.ape.cols;
  const int threads = ctx.pool->num_threads();
  ArenaScope scope(*ctx.scratch);
  Arena& arena = *ctx.scratch;
  Scratch* scratch = arena.Allocate<Scratch>(threads);
  for (int i = 0; i < threads; ++i) {
    scratch[i].a = arena.Allocate<const float*>(2 * args.ratio);
    scratch[i].b = arena.Allocate<const float*>(2 * args.ratio);
    scratch[i].entry = arena.Allocate<float>(args.dim);
    scratch[i].cos = arena.Allocate<float>(args.rope_dim / 2);
    scratch[i].sin = arena.Allocate<float>(args.rope_dim / 2);
  }

  int64_t num_windows = 0;
  for (const SequenceRows& sequence : args.sequences) {
    constexpr int64_t kRowsPerItem = 32;
    ctx.pool->ParallelFor((sequence.num_rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
      for (int64_t i = item * kRowsPerItem; i < sequence.num_rows && i < (item + 1) * kRowsPerItem; ++i) {
        float* b = args.b + (sequence.first_row + i) * width;
        const float* ape = args.ape.f32() + (sequence.first_position + i) % args.ratio * width;
        for (int64_t k = 0; k < width; k += kLanes) Store(b + k, Load(b + k) + Load(ape + k));
      }
    });
    num_windows += WindowsOf(args, sequence).count;
  }
  ctx.pool->ParallelFor(num_windows, [&](int64_t item, int thread) {
    for (const SequenceRows& sequence : args.sequences) {
      const Windows windows = WindowsOf(args, sequence);
      if (item < windows.count) return EmitEntry(ctx, args, sequence, windows.first + item, scratch[thread]);
      item -= windows.count;
    }
  });
  for (const SequenceRows& sequence : args.sequences) {
    const RingView& ring = RingOf(args, sequence);
    for (int64_t i = sequence.num_rows > ring.slots ? sequence.num_rows - ring.slots : 0;
         i < sequence.num_rows; ++i) {
      float* kept = reinterpret_cast<float*>(ring[sequence.first_position + i]);
      const int64_t row = sequence.first_row + i;
      std::memcpy(kept, args.a + row * width, static_cast<size_t>(width) * 4);
      std::memcpy(kept + width, args.b + row * width, static_cast<size_t>(width) * 4);
    }
  }
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
