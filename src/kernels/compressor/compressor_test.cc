#include "kernels/compressor/compressor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"
#include "tests/tolerances.h"

namespace foresight::compressor_test {
namespace {

struct Case {
  Numerics numerics = Numerics::kClean;
  int ratio = 4;
  bool for_indexer = false;
  int dim = 128;
  int rope_dim = 64;

  CacheFormat format() const {
    return numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32;
  }
  EntryLayout entry() const { return {format(), for_indexer ? 64 : dim, for_indexer ? 0 : rope_dim}; }
  IndexKeyLayout index_key() const { return {format(), for_indexer ? dim : 0}; }
  int width() const { return ratio == 4 ? 2 * dim : dim; }
  int64_t item_bytes() const { return for_indexer ? index_key().bytes() : entry().bytes(); }
};

struct Sequence {
  Sequence(const Case& c, int length, uint32_t seed, int extra_slots = 0)
      : length(length),
        cache({.entry = c.entry(),
               .index_key = c.index_key(),
               .num_entries = length / c.ratio,
               .per_block = 256 / c.ratio,
               .row_floats = c.for_indexer ? 0 : 2 * c.width(),
               .row_slots = (c.ratio == 4 ? 7 : 127) + extra_slots,
               .index_row_floats = c.for_indexer ? 2 * c.width() : 0}) {
    RandomFloats random(seed);
    a = random.Vector(int64_t{length} * c.width());
    b = random.Vector(int64_t{length} * c.width(), 2);
  }
  int length;
  FakeCache cache;
  std::vector<float> a, b;
};

struct Part {
  Sequence* sequence;
  int begin;
  int end;
};

void Compress(const KernelTable& table, const KernelContext& ctx, const Case& c,
              const std::vector<Part>& parts) {
  const std::vector<float> ape = RandomFloats(50).Vector(int64_t{c.ratio} * c.width(), 0.5f);
  const std::vector<float> norm = RandomFloats(51).Vector(c.dim);
  std::vector<float> frequencies(c.rope_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = std::pow(0.7f, static_cast<float>(i));
  std::vector<float> a, b;
  std::vector<SequenceRows> rows;
  int total = 0;
  for (const auto& [s, begin, end] : parts) {
    a.insert(a.end(), s->a.begin() + begin * c.width(), s->a.begin() + end * c.width());
    b.insert(b.end(), s->b.begin() + begin * c.width(), s->b.begin() + end * c.width());
    rows.push_back({total, end - begin, begin, s->cache.view()});
    total += end - begin;
  }
  const CompressorArgs args = {
      .sequences = rows,
      .rows = total,
      .ratio = c.ratio,
      .for_indexer = c.for_indexer,
      .entry = c.entry(),
      .index_key = c.index_key(),
      .dim = c.dim,
      .rope_dim = c.rope_dim,
      .a = a.data(),
      .b = b.data(),
      .ape = {DType::kF32, c.ratio, c.width(), reinterpret_cast<const std::byte*>(ape.data())},
      .norm = {DType::kF32, c.dim, reinterpret_cast<const std::byte*>(norm.data())},
      .norm_eps = 1e-6f,
      .frequencies = frequencies.data()};
  table.attention_inputs(ctx, {.compressor = args});
  EXPECT_EQ(ctx.scratch->used(), 0u);
}

// All bytes that the compressor wrote for the sequence.
std::vector<std::byte> Entries(const Case& c, const Sequence& s) {
  const PagedView& pages = c.for_indexer ? s.cache.view().index_keys : s.cache.view().compressed;
  std::vector<std::byte> bytes;
  for (int i = 0; i < s.length / c.ratio; ++i) bytes.insert(bytes.end(), pages[i], pages[i] + c.item_bytes());
  return bytes;
}

std::vector<float> Values(const Case& c, const Sequence& s) {
  const std::vector<std::byte> bytes = Entries(c, s);
  std::vector<float> values(s.length / c.ratio * c.dim);
  for (int i = 0; i < s.length / c.ratio; ++i) {
    const std::byte* item = bytes.data() + i * c.item_bytes();
    if (c.for_indexer) {
      DecodeIndexKey(c.index_key(), item, &values[i * c.dim]);
    } else {
      DecodeEntry(c.entry(), item, &values[i * c.dim]);
    }
  }
  return values;
}

double RelativeL2(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0;
  double norm = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(error / norm);
}

// A bf16 that falls to the other side may take its E4M3 or E2M1 code with it.
double Tolerance(const Case& c) {
  return c.numerics == Numerics::kFaithful ? 10 * tolerances::kBf16Flips : tolerances::kFloat32;
}

// A sequence in steps of random sizes, below another one.
std::vector<std::byte> EntriesOfChunks(const KernelTable& table, const KernelContext& ctx, const Case& c,
                                       int length, int seed) {
  RandomFloats random(seed);
  Sequence got(c, length, 5, /*extra_slots=*/seed);
  Sequence other(c, length, 6);
  for (int at = 0; at < length;) {
    const int count = std::min(seed == 0 ? 1 : 1 + random.Below(seed == 1 ? 200 : 9), length - at);
    Compress(table, ctx, c, {{&other, at, at + count}, {&got, at, at + count}});
    at += count;
  }
  return Entries(c, got);
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (Numerics n : {Numerics::kClean, Numerics::kFaithful}) {
    cases.push_back({.numerics = n, .ratio = 4});
    cases.push_back({.numerics = n, .ratio = 4, .dim = 512});
    cases.push_back({.numerics = n, .ratio = 128, .dim = 192});
    cases.push_back({.numerics = n, .ratio = 4, .for_indexer = true});
    cases.push_back({.numerics = n, .ratio = 4, .for_indexer = true, .dim = 32, .rope_dim = 32});
  }
  return cases;
}

class Compressor : public testing::TestWithParam<Case> {};

TEST_P(Compressor, FollowsTheDefinition) {
  const Case& c = GetParam();
  KernelHost host(2);
  const KernelContext ctx = host.context(c.numerics);
  for (int length : {3, 4, 8, 9, 128, 260}) {
    Sequence want(c, length, 5);
    Compress(RefKernels(), ctx, c, {{&want, 0, length}});
    const std::vector<float> want_values = Values(c, want);
    for (const KernelTable* table : CpuTables()) {
      Sequence got(c, length, 5);
      Compress(*table, ctx, c, {{&got, 0, length}});
      EXPECT_LE(RelativeL2(Values(c, got), want_values), Tolerance(c)) << table->name << " length " << length;
    }
  }
}

TEST_P(Compressor, WritesTheSameBytesInAnyChunksAndCompany) {
  const Case& c = GetParam();
  constexpr int kLength = 270;
  for (const KernelTable* table : CpuTables()) {
    KernelHost one(1);
    Sequence want(c, kLength, 5);
    Compress(*table, one.context(c.numerics), c, {{&want, 0, kLength}});
    const std::vector<std::byte> bytes = Entries(c, want);
    for (int seed = 0; seed < 4; ++seed) {
      KernelHost host(1 + seed % 3);
      EXPECT_EQ(EntriesOfChunks(*table, host.context(c.numerics), c, kLength, seed), bytes)
          << table->name << " seed " << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Compressor, testing::ValuesIn(Cases()));

using CompressorCuda = OnDevice<testing::TestWithParam<Case>>;

TEST_P(CompressorCuda, FollowsTheDefinition) {
  const Case& c = GetParam();
  KernelHost host(2);
  for (int length : {3, 4, 8, 9, 128, 260}) {
    Sequence want(c, length, 5);
    Compress(RefKernels(), host.context(c.numerics), c, {{&want, 0, length}});
    Sequence got(c, length, 5);
    Compress(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {{&got, 0, length}});
    EXPECT_LE(RelativeL2(Values(c, got), Values(c, want)), Tolerance(c)) << "length " << length;
  }
}

TEST_P(CompressorCuda, WritesTheSameBytesInAnyChunksAndCompany) {
  const Case& c = GetParam();
  constexpr int kLength = 270;
  const KernelContext ctx = device_->context(c.numerics);
  Sequence want(c, kLength, 5);
  Compress(CudaKernelsForHostArguments(), ctx, c, {{&want, 0, kLength}});
  for (int seed = 0; seed < 4; ++seed) {
    EXPECT_EQ(EntriesOfChunks(CudaKernelsForHostArguments(), ctx, c, kLength, seed), Entries(c, want))
        << "seed " << seed;
  }
}

// Steps of one row and of several, to where the second block ends: what initcheck can follow, and racecheck.
TEST_P(CompressorCuda, WritesTheSameBytesInALittleCompany) {
  const Case& c = GetParam();
  const int length = 2 * c.ratio + 3;
  const KernelContext ctx = device_->context(c.numerics);
  const KernelTable& table = CudaKernelsForHostArguments();
  Sequence want(c, length, 5);
  Compress(table, ctx, c, {{&want, 0, length}});
  Sequence got(c, length, 5);
  Sequence other(c, length, 6);
  const int borders[] = {0, 1, 2, c.ratio - 1, c.ratio + 1, 2 * c.ratio, length};
  for (size_t i = 1; i < std::size(borders); ++i) {
    Compress(table, ctx, c, {{&other, borders[i - 1], borders[i]}, {&got, borders[i - 1], borders[i]}});
  }
  EXPECT_EQ(Entries(c, got), Entries(c, want));
}

INSTANTIATE_TEST_SUITE_P(Shapes, CompressorCuda, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace foresight::compressor_test
