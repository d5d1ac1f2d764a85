// The parts of a layer's inputs are the same to the byte in one call as each by itself.
#include "kernels/attention/attention_inputs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"

namespace foresight::attention_inputs_test {
namespace {

struct Shape {
  Numerics numerics;
  int ratio;
  int query_dim;
  bool has_index;
  int layers = 1;  // whose keys there are

  CacheFormat format() const {
    return numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32;
  }
  EntryLayout entry() const { return {format(), 512, 64}; }
  IndexKeyLayout index_key() const { return {format(), has_index ? 128 : 0}; }
  int width(int dim) const { return ratio == 4 ? 2 * dim : dim; }
};

VectorView F32View(const std::vector<float>& x) {
  return {DType::kF32, std::ssize(x), reinterpret_cast<const std::byte*>(x.data())};
}

// Steps of two sequences, the first one from its beginning to its end; what all of them leave.
std::vector<std::vector<std::byte>> StepsOf(const KernelTable& table, const KernelContext& ctx,
                                            const Shape& shape, bool together) {
  constexpr int kRows[][2] = {{1, 1}, {6, 2}, {1, 9}, {140, 1}, {3, 3}};
  constexpr int kFirst[] = {0, 250};
  const int64_t slots = shape.ratio == 4 ? 11 : 131;
  const auto cache = [&] {
    return FakeCache({.entry = shape.entry(),
                      .index_key = shape.index_key(),
                      .num_entries = 300 / shape.ratio,
                      .row_floats = 2 * shape.width(512),
                      .row_slots = slots,
                      .index_row_floats = shape.has_index ? 2 * shape.width(128) : 0});
  };
  const FakeCache caches[] = {cache(), cache()};
  RandomFloats random(1);
  const std::vector<float> query_norm = random.Vector(shape.query_dim), key_norm = random.Vector(512);
  const std::vector<float> norm = random.Vector(512), index_norm = random.Vector(128);
  const std::vector<float> ape = random.Vector(int64_t{shape.ratio} * shape.width(512));
  const std::vector<float> index_ape = random.Vector(int64_t{shape.ratio} * shape.width(128));
  const std::vector<float> frequencies = random.Vector(32);
  std::vector<std::vector<std::byte>> left;
  int64_t at[] = {kFirst[0], kFirst[1]};
  // The ring of the second sequence, which comes from nowhere.
  for (const RingView& ring : {caches[1].view().compressor_rows, caches[1].view().index_compressor_rows}) {
    const std::vector<float> rows = random.Vector(ring.slots * ring.item_bytes / 4);
    std::copy(rows.begin(), rows.end(), reinterpret_cast<float*>(ring.data));
  }
  for (const auto& rows : kRows) {
    const int total = rows[0] + rows[1];
    const std::vector<SequenceRows> sequences = {{0, rows[0], at[0], caches[0].view()},
                                                 {rows[0], rows[1], at[1], caches[1].view()}};
    std::vector<float> qr = random.Vector(int64_t{total} * shape.query_dim);
    const std::vector<float> kv = random.Vector(int64_t{shape.layers} * total * 512);
    const std::vector<float> cos = random.Vector(total * 32), sin = random.Vector(total * 32);
    const std::vector<float> a = random.Vector(int64_t{total} * shape.width(512));
    const std::vector<float> index_a = random.Vector(int64_t{total} * shape.width(128));
    std::vector<float> b = a, index_b = index_a;
    std::vector<std::byte> entries(shape.layers * total * shape.entry().bytes());
    const auto compressor = [&](bool for_indexer) {
      const int dim = for_indexer ? 128 : 512;
      return CompressorArgs{
          .sequences = sequences,
          .rows = total,
          .ratio = shape.ratio,
          .for_indexer = for_indexer,
          .entry = shape.entry(),
          .index_key = shape.index_key(),
          .dim = dim,
          .rope_dim = 64,
          .a = for_indexer ? index_a.data() : a.data(),
          .b = for_indexer ? index_b.data() : b.data(),
          .ape = {DType::kF32, shape.ratio, shape.width(dim),
                  reinterpret_cast<const std::byte*>(for_indexer ? index_ape.data() : ape.data())},
          .norm = F32View(for_indexer ? index_norm : norm),
          .norm_eps = 1e-6f,
          .frequencies = frequencies.data()};
    };
    AttentionInputsArgs args;
    args.query = RmsNormArgs{.rows = total,
                             .dim = shape.query_dim,
                             .x = qr.data(),
                             .weight = F32View(query_norm),
                             .eps = 1e-6f,
                             .out = qr.data()};
    std::vector<KeyArgs> keys;
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      keys.push_back({.rows = total,
                      .layout = shape.entry(),
                      .kv = kv.data() + layer * total * 512,
                      .norm = F32View(key_norm),
                      .eps = 1e-6f,
                      .cos = cos.data(),
                      .sin = sin.data(),
                      .entries = entries.data() + layer * total * shape.entry().bytes()});
    }
    args.keys = keys;
    args.compressor = compressor(/*for_indexer=*/false);
    if (shape.has_index) args.index_compressor = compressor(/*for_indexer=*/true);
    if (together) {
      table.attention_inputs(ctx, args);
    } else {
      table.attention_inputs(ctx, {.index_compressor = args.index_compressor});
      table.attention_inputs(ctx, {.compressor = args.compressor});
      for (const KeyArgs& key : args.keys) table.attention_inputs(ctx, {.keys = {&key, 1}});
      table.attention_inputs(ctx, {.query = args.query});
    }
    const auto keep = [&](const auto* data, int64_t count) {
      const auto* bytes = reinterpret_cast<const std::byte*>(data);
      left.emplace_back(bytes, bytes + count * static_cast<int64_t>(sizeof(*data)));
    };
    keep(qr.data(), std::ssize(qr));
    keep(entries.data(), std::ssize(entries));
    for (int i = 0; i < 2; ++i) {
      at[i] += rows[i];
      const LayerCacheView& view = caches[i].view();
      for (int64_t s = 0; s < at[i] / shape.ratio; ++s) {
        keep(view.compressed[s], view.compressed.item_bytes);
        if (shape.has_index) keep(view.index_keys[s], view.index_keys.item_bytes);
      }
      for (const RingView& ring : {view.compressor_rows, view.index_compressor_rows}) {
        keep(ring.data, ring.slots * ring.item_bytes);
      }
    }
  }
  return left;
}

std::vector<Shape> Shapes() {
  return {{Numerics::kFaithful, 4, 1024, true},     {Numerics::kClean, 4, 1536, true},
          {Numerics::kFaithful, 128, 1536, false},  {Numerics::kClean, 128, 32, false},
          {Numerics::kFaithful, 128, 32, false, 3}, {Numerics::kClean, 128, 32, false, 5}};
}

TEST(AttentionInputs, AreTheSameTogetherAndApart) {
  KernelHost host(2);
  std::vector<const KernelTable*> tables = CpuTables();
  tables.push_back(&RefKernels());
  for (const Shape& shape : Shapes()) {
    const KernelContext ctx = host.context(shape.numerics);
    for (const KernelTable* table : tables) {
      EXPECT_EQ(StepsOf(*table, ctx, shape, true), StepsOf(*table, ctx, shape, false)) << table->name;
    }
  }
}

using AttentionInputsCuda = OnDevice<>;

TEST_F(AttentionInputsCuda, AreTheSameTogetherAndApart) {
  for (const Shape& shape : Shapes()) {
    const KernelContext ctx = device_->context(shape.numerics);
    const KernelTable& table = CudaKernelsForHostArguments();
    EXPECT_EQ(StepsOf(table, ctx, shape, true), StepsOf(table, ctx, shape, false)) << "ratio " << shape.ratio;
  }
}

}  // namespace
}  // namespace foresight::attention_inputs_test
