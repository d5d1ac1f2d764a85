// Attention of one row per sequence, at released shapes and at the edges of key lists: by the definition, and
// the same bits in any company, whichever kernels the number of rows chooses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"
#include "kernels/weight_fixture.h"
#include "tests/tolerances.h"

namespace foresight::attention_rows_test {
namespace {

struct Shape {
  Numerics numerics = Numerics::kFaithful;
  int heads = 64;
  int dim = 512;
  CompressedKeys compressed = CompressedKeys::kPicked;
  int topk = 512;
  float sink = 0;       // added to all
  float magnitude = 1;  // of keys

  EntryLayout layout() const {
    return {numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32, dim, 64};
  }
  int ratio() const { return compressed == CompressedKeys::kAll ? 128 : 4; }
};
constexpr int kWindow = 128;

// A sequence about to decode one row at `position`, with everything that the row sees.
struct Decoding {
  Decoding(const Shape& shape, int64_t position, uint32_t seed)
      : position(position),
        cache(
            {.entry = shape.layout(),
             .window_slots = kWindow + 3,
             .num_entries = shape.compressed == CompressedKeys::kNone ? 0 : (position + 1) / shape.ratio()}) {
    RandomFloats random(seed);
    const EntryLayout layout = shape.layout();
    const auto encode_key = [&](std::byte* entry) {
      std::vector<float> key = random.Vector(shape.dim);
      for (float& x : key) x *= shape.magnitude;
      EncodeEntry(layout, key.data(), entry);
    };
    for (int64_t p = std::max<int64_t>(0, position + 1 - kWindow); p < position; ++p) {
      encode_key(cache.view().window[p]);
    }
    const int64_t entries = shape.compressed == CompressedKeys::kNone ? 0 : (position + 1) / shape.ratio();
    for (int64_t s = 0; s < entries; ++s) {
      encode_key(cache.view().compressed[s]);
    }
    own.resize(layout.bytes());
    encode_key(own.data());
    q = random.Vector(int64_t{shape.heads} * shape.dim, 2);
    if (shape.numerics == Numerics::kFaithful) std::transform(q.begin(), q.end(), q.begin(), RoundBf16);
    cos = random.Vector(32);
    sin = random.Vector(32);
    std::vector<int32_t> all(entries);
    for (int64_t s = 0; s < entries; ++s) all[s] = static_cast<int32_t>(s);
    while (std::ssize(all) > shape.topk) all.erase(all.begin() + random.Below(static_cast<int>(all.size())));
    // The indexer may pick fewer than there are.
    if (seed % 3 == 0 && all.size() > 2) all.resize(all.size() - 2);
    picks = all;
    picks.resize(shape.topk, -1);
  }

  int64_t position;
  FakeCache cache;
  std::vector<std::byte> own;
  std::vector<float> q, cos, sin;
  std::vector<int32_t> picks;
};

using Rows = std::vector<const Decoding*>;

// One step of all rows; each row's output. `known`: the kernels are told how long lists may be.
std::vector<std::vector<float>> Attend(const KernelTable& table, const KernelContext& ctx, const Shape& shape,
                                       const Rows& rows, bool known = true) {
  std::vector<float> sinks = RandomFloats(5).Vector(shape.heads);
  for (float& s : sinks) s += shape.sink;
  std::vector<SequenceRows> sequences;
  std::vector<float> q, cos, sin;
  std::vector<std::byte> entries;
  std::vector<int32_t> picks;
  int64_t entries_max = 0;
  for (const Decoding* d : rows) {
    entries_max = std::max(entries_max, (d->position + 1) / shape.ratio());
    sequences.push_back({static_cast<int>(sequences.size()), 1, d->position, d->cache.view()});
    q.insert(q.end(), d->q.begin(), d->q.end());
    cos.insert(cos.end(), d->cos.begin(), d->cos.end());
    sin.insert(sin.end(), d->sin.begin(), d->sin.end());
    entries.insert(entries.end(), d->own.begin(), d->own.end());
    picks.insert(picks.end(), d->picks.begin(), d->picks.end());
  }
  std::vector<float> out(q.size(), NAN);
  table.attention(ctx, {.sequences = sequences,
                        .rows = static_cast<int>(rows.size()),
                        .entries_max = known ? entries_max : 0,
                        .heads = shape.heads,
                        .window = kWindow,
                        .layout = shape.layout(),
                        .compressed = shape.compressed,
                        .ratio = shape.ratio(),
                        .topk = shape.topk,
                        .q = q.data(),
                        .query_eps = 1e-6f,
                        .entries = entries.data(),
                        .sink = {DType::kF32, shape.heads, reinterpret_cast<const std::byte*>(sinks.data())},
                        .picks = picks.data(),
                        .cos = cos.data(),
                        .sin = sin.data(),
                        .out = out.data()});
  std::vector<std::vector<float>> outs;
  const auto values = static_cast<int64_t>(out.size() / rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    outs.emplace_back(out.begin() + static_cast<int64_t>(i) * values,
                      out.begin() + static_cast<int64_t>(i + 1) * values);
  }
  return outs;
}

// Positions with as many compressed entries.
std::vector<int64_t> PositionsOf(const Shape& shape, std::initializer_list<int64_t> entries) {
  std::vector<int64_t> positions;
  for (int64_t n : entries) positions.push_back(n * shape.ratio() + (n == 0 ? 0 : shape.ratio() / 2));
  return positions;
}

std::vector<std::unique_ptr<Decoding>> Prepare(const Shape& shape, const std::vector<int64_t>& positions) {
  std::vector<std::unique_ptr<Decoding>> all;
  for (int64_t p : positions)
    all.push_back(std::make_unique<Decoding>(shape, p, static_cast<uint32_t>(p + 11)));
  return all;
}

double ToleranceOf(Numerics numerics) {
  return numerics == Numerics::kFaithful ? tolerances::kBf16Probabilities : tolerances::kSplitBf16;
}

std::vector<Shape> Shapes() {
  const Numerics faithful = Numerics::kFaithful;
  const Numerics clean = Numerics::kClean;
  return {{.numerics = faithful, .heads = 64},
          {.numerics = faithful, .heads = 16, .sink = 50},
          {.numerics = faithful, .heads = 128, .topk = 1024, .sink = -50},
          {.numerics = faithful, .heads = 64, .compressed = CompressedKeys::kAll},
          {.numerics = faithful, .heads = 64, .compressed = CompressedKeys::kNone},
          {.numerics = faithful, .heads = 64, .dim = 128},
          // Scale bytes at both ends of what bf16 can hold in one step.
          {.numerics = faithful, .heads = 64, .topk = 64, .magnitude = 3e4f},
          {.numerics = faithful, .heads = 64, .topk = 64, .magnitude = 1e-34f},
          {.numerics = clean, .heads = 16, .topk = 64},
          {.numerics = clean, .heads = 64, .compressed = CompressedKeys::kAll},
          {.numerics = clean, .heads = 20, .dim = 128, .topk = 64, .sink = 50}};
}

std::vector<std::unique_ptr<Decoding>> PrepareRows(const Shape& shape) {
  return Prepare(shape, PositionsOf(shape, {0, 1, 2, 31, 63, 64, 65, 511, 600, 1024}));
}

// Rows in one step, as many as each of `counts`, are what each of them is alone.
void ExpectTheSameInCompany(const KernelContext& ctx, const Shape& shape,
                            const std::vector<std::unique_ptr<Decoding>>& decodings,
                            const std::vector<std::vector<float>>& alone, std::initializer_list<int> counts) {
  for (int count : counts) {
    Rows rows;
    for (int i = 0; i < count; ++i) rows.push_back(decodings[(3 * i + count) % decodings.size()].get());
    const auto got = Attend(CudaKernelsForHostArguments(), ctx, shape, rows);
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(got[i], alone[(3 * i + count) % decodings.size()]) << "row " << i << " of " << count;
    }
  }
}

using AttentionRowsCuda = OnDevice<testing::TestWithParam<Shape>>;

TEST_P(AttentionRowsCuda, FollowTheDefinitionAndAreTheSameAmongFew) {
  const Shape& shape = GetParam();
  KernelHost host(8);
  const KernelContext ctx = device_->context(shape.numerics);
  const auto decodings = PrepareRows(shape);
  std::vector<std::vector<float>> alone;
  for (const auto& d : decodings) {
    alone.push_back(Attend(CudaKernelsForHostArguments(), ctx, shape, {d.get()})[0]);
    const auto want = Attend(RefKernels(), host.context(shape.numerics), shape, {d.get()})[0];
    // Where a sink takes most of the weight, a single key's rounding is all there is.
    EXPECT_LE(RelativeL2(alone.back(), want), 2 * ToleranceOf(shape.numerics)) << "position " << d->position;
  }
  ExpectTheSameInCompany(ctx, shape, decodings, alone, {2, 3, 4, 7, 8, 12, 15});
}

TEST_P(AttentionRowsCuda, AreTheSameAmongMany) {
  const Shape& shape = GetParam();
  const KernelContext ctx = device_->context(shape.numerics);
  const auto decodings = PrepareRows(shape);
  std::vector<std::vector<float>> alone;
  for (const auto& d : decodings) {
    alone.push_back(Attend(CudaKernelsForHostArguments(), ctx, shape, {d.get()})[0]);
  }
  ExpectTheSameInCompany(ctx, shape, decodings, alone, {16, 20, 30, 32, 64, 128});
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionRowsCuda, testing::ValuesIn(Shapes()));

using AttentionLongListsCuda = OnDevice<testing::TestWithParam<Numerics>>;

// Lists of several chunks.
TEST_P(AttentionLongListsCuda, FollowTheDefinitionAndAreTheSameInAnyCompany) {
  const Numerics numerics = GetParam();
  const Shape shape{.numerics = numerics, .heads = 16, .compressed = CompressedKeys::kAll};
  KernelHost host(8);
  const KernelContext ctx = device_->context(numerics);
  const auto decodings = Prepare(shape, PositionsOf(shape, {1024, 1025, 1152, 1153, 3000, 8192, 8300}));
  std::vector<std::vector<float>> alone;
  for (const auto& d : decodings) {
    alone.push_back(Attend(CudaKernelsForHostArguments(), ctx, shape, {d.get()})[0]);
    const auto want = Attend(RefKernels(), host.context(numerics), shape, {d.get()})[0];
    EXPECT_LE(RelativeL2(alone.back(), want), 2 * ToleranceOf(numerics)) << "position " << d->position;
  }
  for (size_t i = 0; i < decodings.size(); ++i) {
    const Rows row = {decodings[i].get()};
    EXPECT_EQ(Attend(CudaKernelsForHostArguments(), ctx, shape, row, /*known=*/false)[0], alone[i]);
  }
  for (int count : {3, 8, 12, 20, 40, 70}) {
    Rows rows;
    for (int i = 0; i < count; ++i) rows.push_back(decodings[(i + count) % decodings.size()].get());
    const auto got = Attend(CudaKernelsForHostArguments(), ctx, shape, rows);
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(got[i], alone[(i + count) % decodings.size()]) << "row " << i << " of " << count;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(BothNumerics, AttentionLongListsCuda,
                         testing::Values(Numerics::kFaithful, Numerics::kClean));

// As few rows and keys as choose a kernel and cross the borders of its tiles: what racecheck can follow,
// which looks at every access to shared memory.
struct LittleCase {
  const char* name;
  Shape shape;
  int entries;  // of every second row, after one with a single key
  int rows;
};

std::vector<LittleCase> LittleCases() {
  const Shape picked{.heads = 64, .topk = 64};
  Shape clean = picked;
  clean.numerics = Numerics::kClean;
  const Shape more_picked{.heads = 64, .topk = 576};
  Shape more_picked_of_few_heads = more_picked;
  more_picked_of_few_heads.heads = 8;
  const Shape all{.heads = 8, .compressed = CompressedKeys::kAll};
  Shape clean_all = all;
  clean_all.numerics = Numerics::kClean;
  const Shape all_of_many_heads{.heads = 64, .compressed = CompressedKeys::kAll};
  return {{"ClusterOf8Heads", picked, 66, 1},
          {"ClusterOf16Heads", picked, 66, 2},
          {"PanelOf32Heads", picked, 66, 4},
          {"PanelOf64Heads", picked, 66, 8},
          {"PanelInClustersOf4", picked, 66, 16},
          {"Pair", picked, 66, 32},
          {"Wide", picked, 66, 70},
          {"ClusterOf8HeadsClean", clean, 66, 1},
          {"ClusterOf16HeadsClean", clean, 66, 2},
          {"BlockClean", clean, 66, 4},
          {"Block", {.heads = 17, .dim = 128, .topk = 64}, 66, 2},
          // Chunks of two panels.
          {"ClusterOf8HeadsOfPanels", more_picked_of_few_heads, 578, 1},
          {"PanelOf64HeadsOfPanels", more_picked, 578, 8},
          // Lists of more than one chunk.
          {"ClusterOf8HeadsOfChunks", all, 577, 2},
          {"ClusterOf16HeadsOfChunks", all_of_many_heads, 577, 1},
          {"PanelOf32HeadsOfChunks", all_of_many_heads, 577, 2},
          {"PanelOf64HeadsOfChunks", all_of_many_heads, 577, 4},
          {"PanelInClustersOf4OfChunks", all_of_many_heads, 577, 8},
          {"PairOfChunks", all_of_many_heads, 577, 16},
          {"ClusterOfChunksClean", clean_all, 577, 2},
          {"WideOfChunks", all_of_many_heads, 577, 70}};
}

using AttentionLittleCuda = OnDevice<testing::TestWithParam<LittleCase>>;

TEST_P(AttentionLittleCuda, FollowsTheDefinitionInEveryRow) {
  const auto& [name, shape, entries, count] = GetParam();
  KernelHost host(2);
  auto positions = PositionsOf(shape, {entries});
  if (count > 1) positions.insert(positions.begin(), 0);
  const auto decodings = Prepare(shape, positions);
  Rows rows;
  for (int i = 0; i < count; ++i) rows.push_back(decodings[i % decodings.size()].get());
  const auto got = Attend(CudaKernelsForHostArguments(), device_->context(shape.numerics), shape, rows);
  for (int i = 0; i < count; ++i) {
    if (i < std::ssize(decodings)) {
      const auto want = Attend(RefKernels(), host.context(shape.numerics), shape, {rows[i]})[0];
      EXPECT_LE(RelativeL2(got[i], want), 2 * ToleranceOf(shape.numerics)) << "row " << i;
    } else {
      EXPECT_EQ(got[i], got[i % decodings.size()]) << "row " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionLittleCuda, testing::ValuesIn(LittleCases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace foresight::attention_rows_test
