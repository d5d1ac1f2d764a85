// The compressor: pools the rows of each window of r tokens into one cached entry (model spec 2.5).
#pragma once

#include <span>

#include "kernels/kernel_context.h"
#include "tensor/tensor.h"

namespace foresight {

// Adds ape to the gate rows, emits an entry for every window that closes within the step, and stores the
// rows.
//
//   b_t += ape[t mod r]; entry s = RoPE(RMSNorm(sum softmax_items(b) * a), position s*r), written at index s
//   of the sequence's paged cache; items as in the specification (r = 4: previous window with the first half
//   of the channels, current window with the second half; entry 0 has no previous window).
//
// Shapes   a, b [T, c*n] f32, c = 2 when r = 4 else 1; b may be changed (ape added) · ape [r, c*n] f32 · norm
// [n]
//          frequencies [rope_dim/2] f32
// State    rows of positions before the step come from the ring (cache.compressor_rows, or
// index_compressor_rows for
//          the indexer's own compressor), each a [c*n] then b [c*n] with ape added; the step's last rows are
//          stored there at the end. A ring holds at least the rows of the open and the previous window.
// Output   cache.compressed with `entry`, or cache.index_keys with `index_key` (then n = index_key.dim).
// Numerics float32; faithful: bf16 after the pooling, after the norm and after RoPE; then the layout's
// rounding.
struct CompressorArgs {
  std::span<const SequenceRows> sequences;
  int rows = 0;   // T, of all sequences
  int ratio = 0;  // r: 4 or 128
  bool for_indexer = false;
  EntryLayout entry;         // when !for_indexer
  IndexKeyLayout index_key;  // when for_indexer
  int dim = 0;               // n
  int rope_dim = 0;
  const float* a = nullptr;
  float* b = nullptr;
  MatrixView ape;
  VectorView norm;
  float norm_eps = 0;
  const float* frequencies = nullptr;
};

void CompressorRef(const KernelContext& ctx, const CompressorArgs& args);

}  // namespace foresight
