// The attention core with a sink, over the raw window and the compressed entries (model spec 2.4, 2.7, 2.8).
#pragma once

#include <span>

#include "kernels/kernel_context.h"
#include "kernels/norm_rope/norm_rope.h"
#include "tensor/tensor.h"

namespace foresight {

// Which raw keys a row at position p attends to.
enum class RawKeys : uint8_t {
  kWindow,  // positions max(0, p-window+1) .. p: causal, self included
  kBlock,   // with s = first_position: the window's rows before the step, max(0, s-window) .. s-1, and all
            // rows of its own sequence in the step. The same set for each of them (dspark.md 1.4).
            // With CompressedKeys::kNone alone.
};

// Which compressed entries a row attends to, besides its raw keys.
enum class CompressedKeys : uint8_t {
  kNone,    // SWA
  kPicked,  // CSA: picks[t]
  kAll,     // HCA: every s with (s+1)*ratio <= p+1
};

// o[t, h] = sum_s softmax_s(d^-0.5 q'[t, h] . k_s, sink_h) * k_s, then the inverse RoPE of position p on the
// last dims. q' is q by the head's norm and RoPE (QueryArgs).
//
// Shapes   q [T, H, d], the projection, which may be changed · entries [T, layout.bytes()]: the step's own
//          raw keys · sink [H] f32 · picks [T, topk] i32 ascending, -1 behind the last · cos, sin
//          [T, rope_dim/2] · out [T, H, d]; q and out are packed as KernelTable::packs_heads says, else f32
// State    cache.window holds the raw keys of positions before the step; cache.compressed every visible
// entry. Order    keys are visited in one order: raw by position, then compressed by index; what is visible
// depends on the
//          row's position alone, in a block also on the block's length (row purity).
// Numerics float32 logits and softmax, the sink takes part in the maximum; faithful: bf16 probabilities in
// the value
//          product (the denominator keeps float32), bf16 output of the core and after the inverse RoPE.
struct AttentionArgs {
  std::span<const SequenceRows> sequences;
  int rows = 0;  // T, of all sequences
  // No row sees more compressed entries than this; zero where it isn't known. Kernels are chosen by it.
  int64_t entries_max = 0;
  int heads = 0;
  int window = 0;
  EntryLayout layout;
  RawKeys raw = RawKeys::kWindow;
  CompressedKeys compressed = CompressedKeys::kNone;
  int ratio = 0;  // of the compressed entries
  int topk = 0;   // row length of picks
  ActivationBuffer q;
  float query_eps = 0;  // of q's norm
  const std::byte* entries = nullptr;
  VectorView sink;
  const int32_t* picks = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  ActivationBuffer out;
};

// The raw keys [first, end) of a row, as positions.
struct RawRange {
  int64_t first = 0;
  int64_t end = 0;
};
inline RawRange VisibleRaw(const AttentionArgs& args, const SequenceRows& sequence, int64_t position) {
  const bool block = args.raw == RawKeys::kBlock;
  const int64_t first = (block ? sequence.first_position : position + 1) - args.window;
  return {first > 0 ? first : 0, block ? sequence.first_position + sequence.num_rows : position + 1};
}

// The queries that the logits are made of.
inline QueryArgs QueriesOf(const AttentionArgs& args) {
  return {.rows = args.rows,
          .heads = args.heads,
          .dim = args.layout.dim,
          .rope_dim = args.layout.rope_dim,
          .eps = args.query_eps,
          .cos = args.cos,
          .sin = args.sin,
          .q = args.q.f32()};
}

void AttentionRef(const KernelContext& ctx, const AttentionArgs& args);

}  // namespace foresight
