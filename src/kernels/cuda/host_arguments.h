// For tests: the CUDA table for arguments in host memory, so that the tests of definitions and CPU tables can
// be run on a device as they are. Its context is KernelDevice's.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/device_fixture.h"

namespace foresight {

namespace host_arguments {

inline const KernelTable& Cuda() {
  return **CudaKernels();
}

}  // namespace host_arguments

// The copies of one call's arguments in scratch memory.
class DeviceCopies {
 public:
  explicit DeviceCopies(const KernelContext& ctx) : ctx_(ctx), scope_(*ctx.scratch) {}

  template <typename T>
  const T* In(const T* host, int64_t count) {
    T* copy = ctx_.scratch->Allocate<T>(count);
    ctx_.device->Upload(copy, host, count * static_cast<int64_t>(sizeof(T)));
    return copy;
  }
  // Copied back by Finish. What the host has in it goes along: nothing may depend on it, rows left alone keep
  // it.
  template <typename T>
  T* InOut(T* host, int64_t count) {
    T* copy = const_cast<T*>(In(host, count));
    outputs_.push_back({host, copy, count * static_cast<int64_t>(sizeof(T))});
    return copy;
  }
  // As the table packs heads: of float32 values of the host, which in faithful numerics are bf16 values.
  ActivationBuffer Heads(float* host, int64_t count) {
    if (!host_arguments::Cuda().packs_heads || !ctx_.faithful()) return InOut(host, count);
    std::vector<bf16>& packed = packed_.emplace_back(host, std::vector<bf16>(count)).second;
    std::transform(host, host + count, packed.begin(), FloatToBf16);
    return InOut(packed.data(), count);
  }
  VectorView In(VectorView v) {
    v.data = In(v.data, v.size * static_cast<int64_t>(DTypeBytes(v.dtype)));
    return v;
  }
  MatrixView In(MatrixView m) {  // without scales
    m.data = In(m.data, m.rows * m.row_bytes());
    return m;
  }
  // With their caches; pages as far as `ratio` tokens to an entry need them (0: none).
  std::span<const SequenceRows> In(std::span<const SequenceRows> sequences, int ratio = 0) {
    std::vector<SequenceRows> copies(sequences.begin(), sequences.end());
    for (SequenceRows& s : copies) {
      for (RingView* ring : {&s.cache.window, &s.cache.compressor_rows, &s.cache.index_compressor_rows}) {
        if (ring->slots > 0) ring->data = InOut(ring->data, ring->slots * ring->item_bytes);
      }
      if (ratio == 0) continue;
      PagedView& entries = s.cache.compressed;
      PagedView& keys = s.cache.index_keys;
      const int64_t block_bytes = std::max(entries.offset + entries.per_block * entries.item_bytes,
                                           keys.offset + keys.per_block * keys.item_bytes);
      const int64_t items = (s.first_position + s.num_rows) / ratio;
      std::vector<std::byte*> blocks((items + entries.per_block - 1) / entries.per_block);
      for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = InOut(entries.blocks[i], block_bytes);
      entries.blocks = keys.blocks = In(blocks.data(), static_cast<int64_t>(blocks.size()));
    }
    return {In(copies.data(), static_cast<int64_t>(copies.size())), copies.size()};
  }
  void Finish() {
    for (const auto& [host, copy, bytes] : outputs_) {
      const Status status = ctx_.device->Download(host, copy, bytes);
      ASSERT_TRUE(status.ok()) << status.message();
    }
    for (const auto& [host, packed] : packed_) {
      std::transform(packed.begin(), packed.end(), host, Bf16ToFloat);
    }
  }

 private:
  struct Output {
    void* host;
    const void* copy;
    int64_t bytes;
  };
  const KernelContext& ctx_;
  ArenaScope scope_;
  std::vector<Output> outputs_;
  std::vector<std::pair<float*, std::vector<bf16>>> packed_;
};

namespace host_arguments {

inline int64_t Rows(std::span<const SequenceRows> sequences) {
  return sequences.empty() ? 0 : sequences.back().first_row + sequences.back().num_rows;
}

inline void RmsNorm(const KernelContext& ctx, const RmsNormArgs& host) {
  DeviceCopies copies(ctx);
  RmsNormArgs args = host;
  const int64_t values = int64_t{args.rows} * args.dim;
  args.out = copies.InOut(args.out, values);
  args.x = host.x == host.out ? args.out : copies.In(args.x, values);
  args.weight = copies.In(args.weight);
  Cuda().rms_norm(ctx, args);
  copies.Finish();
}

inline void RopeTable(const KernelContext& ctx, const RopeTableArgs& host) {
  DeviceCopies copies(ctx);
  RopeTableArgs args = host;
  args.positions = copies.In(args.positions, args.rows);
  std::vector<AngleTable> tables(host.tables.begin(), host.tables.end());
  args.tables = tables;
  for (AngleTable& table : tables) {
    table.frequencies = copies.In(table.frequencies, args.pairs);
    table.cos = copies.InOut(table.cos, int64_t{args.rows} * args.pairs);
    table.sin = copies.InOut(table.sin, int64_t{args.rows} * args.pairs);
  }
  Cuda().rope_table(ctx, args);
  copies.Finish();
}

inline void StoreKeys(const KernelContext& ctx, const StoreKeysArgs& host) {
  DeviceCopies copies(ctx);
  StoreKeysArgs args = host;
  args.sequences = copies.In(args.sequences);
  const int64_t item_bytes = host.sequences.empty() ? 0 : host.sequences[0].cache.window.item_bytes;
  args.entries = copies.In(args.entries, int64_t{args.layers} * args.rows * item_bytes);
  Cuda().store_keys(ctx, args);
  copies.Finish();
}

inline void AttentionInputs(const KernelContext& ctx, const AttentionInputsArgs& host) {
  DeviceCopies copies(ctx);
  AttentionInputsArgs args = host;
  if (args.query) {
    const int64_t values = int64_t{args.query->rows} * args.query->dim;
    args.query->out = copies.InOut(args.query->out, values);
    args.query->x = host.query->x == host.query->out ? args.query->out : copies.In(args.query->x, values);
    args.query->weight = copies.In(args.query->weight);
  }
  std::vector<KeyArgs> keys(host.keys.begin(), host.keys.end());
  args.keys = keys;
  for (KeyArgs& key : keys) {
    key.kv = copies.In(key.kv, int64_t{key.rows} * key.layout.dim);
    key.norm = copies.In(key.norm);
    key.cos = copies.In(key.cos, int64_t{key.rows} * key.layout.rope_dim / 2);
    key.sin = copies.In(key.sin, int64_t{key.rows} * key.layout.rope_dim / 2);
    key.entries = copies.InOut(key.entries, key.rows * key.layout.bytes());
  }
  std::span<const SequenceRows> sequences;  // of both compressors
  for (auto* part : {&args.compressor, &args.index_compressor}) {
    if (!*part) continue;
    CompressorArgs& c = **part;
    if (sequences.empty()) sequences = copies.In(c.sequences, c.ratio);
    c.sequences = sequences;
    c.a = copies.In(c.a, c.rows * c.ape.cols);
    c.b = copies.InOut(c.b, c.rows * c.ape.cols);
    c.ape = copies.In(c.ape);
    c.norm = copies.In(c.norm);
    c.frequencies = copies.In(c.frequencies, c.rope_dim / 2);
  }
  Cuda().attention_inputs(ctx, args);
  copies.Finish();
}

inline void Indexer(const KernelContext& ctx, const IndexerArgs& host) {
  DeviceCopies copies(ctx);
  IndexerArgs args = host;
  args.sequences = copies.In(args.sequences, 4);
  args.iq = copies.InOut(args.iq, int64_t{args.rows} * args.heads * args.key.dim);
  args.w = copies.In(args.w, int64_t{args.rows} * args.heads);
  args.cos = copies.In(args.cos, int64_t{args.rows} * args.rope_dim / 2);
  args.sin = copies.In(args.sin, int64_t{args.rows} * args.rope_dim / 2);
  args.picks = copies.InOut(args.picks, int64_t{args.rows} * args.topk);
  Cuda().indexer(ctx, args);
  copies.Finish();
}

inline void Attention(const KernelContext& ctx, const AttentionArgs& host) {
  DeviceCopies copies(ctx);
  AttentionArgs args = host;
  const int64_t values = int64_t{args.rows} * args.heads * args.layout.dim;
  args.sequences = copies.In(args.sequences, args.compressed == CompressedKeys::kNone ? 0 : args.ratio);
  args.q = copies.Heads(host.q.f32(), values);
  args.entries = copies.In(args.entries, args.rows * args.layout.bytes());
  args.sink = copies.In(args.sink);
  if (args.compressed == CompressedKeys::kPicked) {
    args.picks = copies.In(args.picks, int64_t{args.rows} * args.topk);
  }
  args.cos = copies.In(args.cos, int64_t{args.rows} * args.layout.rope_dim / 2);
  args.sin = copies.In(args.sin, int64_t{args.rows} * args.layout.rope_dim / 2);
  args.out = copies.Heads(host.out.f32(), values);
  Cuda().attention(ctx, args);
  copies.Finish();
}

inline void StoreTap(const KernelContext& ctx, const StoreTapArgs& host) {
  DeviceCopies copies(ctx);
  StoreTapArgs args = host;
  args.sequences = copies.In(args.sequences);
  args.streams = copies.In(args.streams, Rows(host.sequences) * args.m * args.dim);
  Cuda().store_tap(ctx, args);
  copies.Finish();
}

inline void LoadTaps(const KernelContext& ctx, const LoadTapsArgs& host) {
  DeviceCopies copies(ctx);
  LoadTapsArgs args = host;
  args.sequences = copies.In(args.sequences);
  args.out = copies.InOut(args.out, Rows(host.sequences) * args.width);
  Cuda().load_taps(ctx, args);
  copies.Finish();
}

}  // namespace host_arguments

// The entries that know about sequences and caches, and what makes their inputs.
inline const KernelTable& CudaKernelsForHostArguments() {
  static constexpr KernelTable kTable = {
      .name = "cuda",
      .description = "for arguments in host memory",
      .rms_norm = host_arguments::RmsNorm,
      .rope_table = host_arguments::RopeTable,
      .attention_inputs = host_arguments::AttentionInputs,
      .store_keys = host_arguments::StoreKeys,
      .indexer = host_arguments::Indexer,
      .attention = host_arguments::Attention,
      .store_tap = host_arguments::StoreTap,
      .load_taps = host_arguments::LoadTaps,
  };
  return kTable;
}

}  // namespace foresight
