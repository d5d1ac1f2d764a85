// How cached keys lie in memory, and the views of them that kernels take. Owned by kv_cache; a view is valid
// for one step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foresight {

// Clean numerics keep float32 entries; faithful numerics keep the released model's packed ones (model
// spec 4.2, 4.3).
enum class CacheFormat : uint8_t { kFloat32, kPacked };

// One raw or compressed key (K = V): head_dim values of which the last rope_dim are rotary.
//   kFloat32  dim * 4 bytes
//   kPacked   nope e4m3 [dim-rope_dim] | rope bf16 [rope_dim] | E8M0 scales, one per 64 nope values | zero
//   pad to a
//             multiple of 8 scale bytes. 584 bytes for 512/64.
struct EntryLayout {
  CacheFormat format = CacheFormat::kFloat32;
  int dim = 0;
  int rope_dim = 0;

  int nope() const { return dim - rope_dim; }
  int64_t bytes() const {
    if (format == CacheFormat::kFloat32) return int64_t{4} * dim;
    return nope() + 2 * rope_dim + (nope() / 64 + 7) / 8 * 8;
  }
};

// One lightning-indexer key of `dim` values.
//   kFloat32  dim * 4 bytes, no Hadamard transform (it is orthogonal: scores are the same)
//   kPacked   after Hadamard: E2M1 codes [dim/2], low nibble first | E8M0 scales [dim/32]. 68 bytes for 128.
struct IndexKeyLayout {
  CacheFormat format = CacheFormat::kFloat32;
  int dim = 0;

  int64_t bytes() const { return format == CacheFormat::kFloat32 ? int64_t{4} * dim : dim / 2 + dim / 32; }
};

// The definitions; fast paths are held to them. x has `dim` values. kPacked encoding rounds x to bf16 first.
void EncodeEntry(const EntryLayout& layout, const float* x, std::byte* out);
void DecodeEntry(const EntryLayout& layout, const std::byte* in, float* x);
// kPacked applies the Hadamard transform to x before rounding; decoding gives the transformed values.
void EncodeIndexKey(const IndexKeyLayout& layout, const float* x, std::byte* out);
void DecodeIndexKey(const IndexKeyLayout& layout, const std::byte* in, float* x);

// Items of fixed size spread over allocation blocks: item i lies in block i / per_block.
struct PagedView {
  std::byte* const* blocks = nullptr;  // [number of blocks of the sequence]
  int64_t offset = 0;                  // of this layer's items within a block
  int64_t item_bytes = 0;
  int64_t per_block = 1;

  std::byte* operator[](int64_t i) const {
    return blocks[i / per_block] + offset + (i % per_block) * item_bytes;
  }
};

// A ring of the last `slots` items by position: item of position p lies in slot p % slots.
struct RingView {
  std::byte* data = nullptr;
  int64_t item_bytes = 0;
  int64_t slots = 0;

  std::byte* operator[](int64_t position) const { return data + (position % slots) * item_bytes; }
};

// One layer of one sequence. Positions [0, length) are stored before the step; the step's own rows come from
// its arguments until StoreRows puts them here. Members that a layer kind has no use for stay empty.
struct LayerCacheView {
  RingView window;       // raw keys, EntryLayout
  PagedView compressed;  // CSA and HCA: entry s at index s, EntryLayout
  PagedView index_keys;  // CSA: key s at index s, IndexKeyLayout
  // Compressor rows by position: float32 a [c*n] then b [c*n], b with ape added (model spec 2.5).
  RingView compressor_rows;
  RingView index_compressor_rows;
};

}  // namespace foresight
