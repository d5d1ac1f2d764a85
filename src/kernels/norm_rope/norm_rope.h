// Norms, rotary embedding, and the query and key of one layer (model spec 2.1, 2.4).
#pragma once

#include <span>

#include "kernels/kernel_context.h"
#include "tensor/tensor.h"

namespace foresight {

// out = w * x / rms(x) per row; out may be x.
//
// Shapes   x, out [T, D] f32 · weight [D]
// Numerics float32, normalise, multiply, faithful: one rounding to bf16.
struct RmsNormArgs {
  int rows = 0;
  int dim = 0;
  const float* x = nullptr;
  VectorView weight;
  float eps = 0;
  float* out = nullptr;
};

// cos and sin of float32(position) * frequency, accurate over the full range (model spec 1.3); of one set of
// frequencies or two.
//
// Shapes   positions [T] i64 · frequencies [pairs] f32 · cos, sin [T, pairs] f32 out
struct AngleTable {
  const float* frequencies = nullptr;
  float* cos = nullptr;
  float* sin = nullptr;
};
struct RopeTableArgs {
  int rows = 0;
  int pairs = 0;
  const int64_t* positions = nullptr;
  std::span<const AngleTable> tables;  // 1 or 2
};

// Per head: q / rms(q) without a weight, over all dims; then RoPE on the last rope_dim dims. In place.
//
// Shapes   q [T, H, d] f32 · cos, sin [T, rope_dim/2]
// Numerics float32; faithful: rounded to bf16 once, after RoPE.
struct QueryArgs {
  int rows = 0;
  int heads = 0;
  int dim = 0;
  int rope_dim = 0;
  float eps = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  float* q = nullptr;
};

// The raw key of each row: RMSNorm with the kv norm, RoPE on the last dims, encoded as a cache entry.
//
// Shapes   kv [T, d] f32 (the wkv projection) · norm [d] · cos, sin [T, rope_dim/2] · entries [T,
// layout.bytes()] out Numerics float32; faithful: bf16 after the norm and after RoPE; the layout rounds the
// rest.
struct KeyArgs {
  int rows = 0;
  EntryLayout layout;
  const float* kv = nullptr;
  VectorView norm;
  float eps = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  std::byte* entries = nullptr;
};

// Copies the step's entries into the window rings of some layers: of each sequence the last
// min(num_rows, slots) rows. Called after these layers' attention, which needs the ring as it was before the
// step.
//
// Shapes   sequences: those of the first layer, then those of the next, as many of each · entries [layers, T,
// item_bytes]
struct StoreKeysArgs {
  int layers = 1;
  int rows = 0;  // T, of all sequences
  std::span<const SequenceRows> sequences;
  const std::byte* entries = nullptr;
};

// Where the entries of args.sequences[i]'s rows begin.
inline int64_t FirstEntryOf(const StoreKeysArgs& args, size_t i) {
  return static_cast<int64_t>(i * static_cast<size_t>(args.layers) / args.sequences.size()) * args.rows +
         args.sequences[i].first_row;
}

void RmsNormRef(const KernelContext& ctx, const RmsNormArgs& args);
void RopeTableRef(const KernelContext& ctx, const RopeTableArgs& args);
void QueryRef(const KernelContext& ctx, const QueryArgs& args);
void KeyRef(const KernelContext& ctx, const KeyArgs& args);
void StoreKeysRef(const KernelContext& ctx, const StoreKeysArgs& args);

}  // namespace foresight
