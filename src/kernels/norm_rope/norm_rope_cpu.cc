#include <cstring>

#include "base/thread_pool.h"
#include "kernels/norm_rope/norm_rope.h"
#include "tensor/formats.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/norm_rope/rotate_cpu.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

// Rows per parallel item such that an item is worth waking a thread for.
constexpr int64_t kItemValues = 32768;

// body(row) for every row of `values` floats.
template <typename Body>
void ForRows(const KernelContext& ctx, int64_t rows, int64_t values, const Body& body) {
  int64_t per_item = values > 0 ? kItemValues / values : rows;
  if (per_item < 1) per_item = 1;
  ctx.pool->ParallelFor((rows + per_item - 1) / per_item, [&](int64_t item, int) {
    const int64_t begin = item * per_item;
    const int64_t end = begin + per_item < rows ? begin + per_item : rows;
    for (int64_t t = begin; t < end; ++t) body(t);
  });
}

}  // namespace

void RmsNorm(const KernelContext& ctx, const RmsNormArgs& args) {
  ForRows(ctx, args.rows, args.dim, [&](int64_t t) {
    NormRow(args.x + t * args.dim, args.weight, args.dim, args.eps, ctx.faithful(), args.out + t * args.dim);
  });
}

void RopeTable(const KernelContext& ctx, const RopeTableArgs& args) {
  constexpr int64_t kCost = 64;  // a sine and cosine cost about as much as so many values of a norm
  for (const AngleTable& table : args.tables) {
    ForRows(ctx, args.rows, args.pairs * kCost, [&](int64_t t) {
      const int64_t at = t * args.pairs;
      RopeTableRow(args.positions[t], table.frequencies, args.pairs, table.cos + at, table.sin + at);
    });
  }
}

void Query(const KernelContext& ctx, const QueryArgs& args) {
  const int pairs = args.rope_dim / 2;
  ForRows(ctx, static_cast<int64_t>(args.rows) * args.heads, args.dim, [&](int64_t item) {
    const int64_t t = item / args.heads;
    float* q = args.q + item * args.dim;
    const float rinv = InverseRms(q, args.dim, args.eps);
    for (int i = 0; i < args.dim; i += kLanes) Store(q + i, Load(q + i) * rinv);
    RotateRow(q + args.dim - args.rope_dim, pairs, args.cos + t * pairs, args.sin + t * pairs);
    if (ctx.faithful()) RoundRow(q, args.dim);
  });
}

void Key(const KernelContext& ctx, const KeyArgs& args) {
  const int dim = args.layout.dim;
  const int pairs = args.layout.rope_dim / 2;
  ArenaScope scope(*ctx.scratch);
  float* keys = ctx.scratch->Allocate<float>(static_cast<int64_t>(ctx.pool->num_threads()) * dim);
  constexpr int64_t kRowsPerItem = 16;
  ctx.pool->ParallelFor((args.rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int thread) {
    float* key = keys + static_cast<int64_t>(thread) * dim;
    for (int64_t t = item * kRowsPerItem; t < args.rows && t < (item + 1) * kRowsPerItem; ++t) {
      NormRow(args.kv + t * dim, args.norm, dim, args.eps, ctx.faithful(), key);
      RotateRow(key + args.layout.nope(), pairs, args.cos + t * pairs, args.sin + t * pairs);
      EncodeEntryRow(args.layout, key, args.entries + t * args.layout.bytes());
    }
  });
}

void StoreKeys(const KernelContext&, const StoreKeysArgs& args) {
  for (size_t k = 0; k < args.sequences.size(); ++k) {
    const SequenceRows& s = args.sequences[k];
    const RingView& ring = s.cache.window;
    const std::byte* entries = args.entries + FirstEntryOf(args, k) * ring.item_bytes;
    const int64_t count = s.num_rows < ring.slots ? s.num_rows : ring.slots;
    for (int64_t i = s.num_rows - count; i < s.num_rows; ++i) {
      std::memcpy(ring[s.first_position + i], entries + i * ring.item_bytes,
                  static_cast<size_t>(ring.item_bytes));
    }
  }
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
