// The lightning indexer: which compressed entries a CSA query attends to (model spec 2.6).
#pragma once

#include <span>

#include "kernels/kernel_context.h"

namespace foresight {

// score[t, s] = sum_h w[t, h] * factor * relu(iq[t, h] . key_s) for the entries s with (s+1)*4 <= position+1;
// the topk largest are picked, equal scores (-0 equals +0) in favour of the lower index.
//
// Shapes   iq [T, Hi, Di] f32: the indexer's query projection, which RoPE (last rope_dim dims) and, with
// packed
//          keys, Hadamard and the FP4 round trip may change in place · w [T, Hi] f32 (weights_proj, unscaled)
//          · cos, sin [T, rope_dim/2] · picks [T, topk] i32 out, ascending, -1 behind the last
// State    cache.index_keys holds every visible key, those of this step included.
// Numerics factor = Di^-0.5 * Hi^-0.5; float32 accumulation. When all visible entries fit in topk no score is
// computed.
struct IndexerArgs {
  std::span<const SequenceRows> sequences;
  int rows = 0;  // T, of all sequences
  // No row sees more entries than this. Where the host can't read positions, scratch is sized by it.
  int64_t entries_max = 0;
  int heads = 0;  // Hi
  int rope_dim = 0;
  int topk = 0;
  IndexKeyLayout key;
  float* iq = nullptr;
  const float* w = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int32_t* picks = nullptr;
};

void IndexerRef(const KernelContext& ctx, const IndexerArgs& args);

}  // namespace foresight
