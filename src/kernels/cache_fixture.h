// For tests and benchmarks of kernels: memory of one layer of one sequence, and a context to call kernels
// with.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernel_context.h"
#include "kernels/kernel_table.h"

namespace foresight {

// The rings and pages of one layer. Everything not yet written holds bytes 0xFF: NaN in every format.
class FakeCache {
 public:
  struct Shape {
    EntryLayout entry = {};
    IndexKeyLayout index_key = {};  // dim 0: none
    int64_t window_slots = 128;
    int64_t num_entries = 0;  // compressed entries and index keys
    int64_t per_block = 64;   // of them in one block
    int64_t row_floats = 0;   // of a compressor's row, both halves
    int64_t row_slots = 0;    // of the compressor's ring
    int64_t index_row_floats = 0;
  };

  explicit FakeCache(const Shape& shape) : shape_(shape) {
    const int64_t key_bytes = shape.index_key.dim > 0 ? shape.index_key.bytes() : 0;
    const int64_t index_offset = kBlockHeader + shape.per_block * shape.entry.bytes();
    for (int64_t i = 0; i < (shape.num_entries + shape.per_block - 1) / shape.per_block; ++i) {
      blocks_.emplace_back(index_offset + shape.per_block * key_bytes, std::byte{0xff});
    }
    for (auto& block : blocks_) block_pointers_.push_back(block.data());
    window_.assign(shape.window_slots * shape.entry.bytes(), std::byte{0xff});
    rows_.assign(shape.row_slots * shape.row_floats * 4, std::byte{0xff});
    index_rows_.assign(shape.row_slots * shape.index_row_floats * 4, std::byte{0xff});
    view_.window = {window_.data(), shape.entry.bytes(), shape.window_slots};
    view_.compressed = {block_pointers_.data(), kBlockHeader, shape.entry.bytes(), shape.per_block};
    view_.index_keys = {block_pointers_.data(), index_offset, key_bytes, shape.per_block};
    view_.compressor_rows = {rows_.data(), shape.row_floats * 4, shape.row_slots};
    view_.index_compressor_rows = {index_rows_.data(), shape.index_row_floats * 4, shape.row_slots};
  }
  FakeCache(FakeCache&&) = default;

  const LayerCacheView& view() const { return view_; }

 private:
  static constexpr int64_t kBlockHeader = 64;  // other layers' items, as it were
  Shape shape_;
  std::vector<std::vector<std::byte>> blocks_;
  std::vector<std::byte*> block_pointers_;
  std::vector<std::byte> window_;
  std::vector<std::byte> rows_;
  std::vector<std::byte> index_rows_;
  LayerCacheView view_;
};

// What kernels need besides their arguments.
class KernelHost {
 public:
  explicit KernelHost(int threads, size_t scratch_bytes = size_t{1} << 32)
      : pool_(threads), scratch_(scratch_bytes) {}
  KernelContext context(Numerics numerics) {
    return {.pool = &pool_, .scratch = &scratch_, .numerics = numerics};
  }

 private:
  ThreadPool pool_;
  Arena scratch_;
};

// The CPU tables that this machine can run.
inline std::vector<const KernelTable*> CpuTables() {
  std::vector<const KernelTable*> tables;
  for (std::string_view isa : {"avx2", "avx512"}) {
    const Result<const KernelTable*> table = CpuKernels(isa);
    if (table.ok()) tables.push_back(*table);
  }
  return tables;
}

class RandomFloats {
 public:
  explicit RandomFloats(uint32_t seed) : engine_(seed) {}
  // About normal: the sum of twelve uniform values, the same everywhere.
  float Next() {
    float sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(engine_() >> 8) * 0x1p-24f;
    return sum;
  }
  int Below(int n) { return static_cast<int>(engine_() % static_cast<uint32_t>(n)); }
  std::vector<float> Vector(int64_t n, float scale = 1) {
    std::vector<float> x(n);
    for (float& v : x) v = Next() * scale;
    return x;
  }

 private:
  std::mt19937 engine_;
};

}  // namespace foresight
