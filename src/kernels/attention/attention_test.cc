#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"
#include "tests/tolerances.h"

namespace foresight::attention_test {
namespace {

struct Case {
  Numerics numerics = Numerics::kClean;
  int heads = 2;
  int dim = 128;
  int window = 32;
  CompressedKeys compressed = CompressedKeys::kNone;
  int ratio = 4;
  int topk = 8;

  EntryLayout layout() const {
    return {numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32, dim, 64};
  }
};

// A sequence with everything that attention reads, and the cache as far as it was run.
class Sequence {
 public:
  Sequence(const Case& c, int length, uint32_t seed) : case_(c), length_(length) {
    RandomFloats random(seed);
    const EntryLayout layout = c.layout();
    q = random.Vector(int64_t{length} * c.heads * c.dim, 2);
    if (c.numerics == Numerics::kFaithful) std::transform(q.begin(), q.end(), q.begin(), RoundBf16);
    cos = random.Vector(length * 32);
    sin = random.Vector(length * 32);
    entries.resize(length * layout.bytes());
    for (int p = 0; p < length; ++p)
      EncodeEntry(layout, random.Vector(c.dim).data(), &entries[p * layout.bytes()]);
    compressed.resize(length / c.ratio * layout.bytes());
    for (int s = 0; s < length / c.ratio; ++s) {
      EncodeEntry(layout, random.Vector(c.dim).data(), &compressed[s * layout.bytes()]);
    }
    picks.assign(int64_t{length} * c.topk, -1);
    for (int p = 0; p < length; ++p) {
      std::vector<int32_t> all((p + 1) / c.ratio);
      for (size_t s = 0; s < all.size(); ++s) all[s] = static_cast<int32_t>(s);
      while (static_cast<int>(all.size()) > c.topk)
        all.erase(all.begin() + random.Below(static_cast<int>(all.size())));
      std::copy(all.begin(), all.end(), picks.begin() + int64_t{p} * c.topk);
    }
  }

  // A cache with nothing in it; slots beyond the window only as many as `slack`.
  void Reset(int slack) {
    cache_ = std::make_unique<FakeCache>(FakeCache::Shape{.entry = case_.layout(),
                                                          .window_slots = case_.window + slack,
                                                          .num_entries = length_ / case_.ratio,
                                                          .per_block = case_.ratio == 4 ? 64 : 2});
    position_ = 0;
  }
  // Writes the compressed entries that a step of `rows` makes visible.
  void Advance(int rows) {
    const int64_t bytes = case_.layout().bytes();
    for (int s = position_ / case_.ratio; s < (position_ + rows) / case_.ratio; ++s) {
      std::memcpy(cache_->view().compressed[s], &compressed[s * bytes], bytes);
    }
    position_ += rows;
  }
  int position() const { return position_; }
  int length() const { return length_; }
  const FakeCache& cache() const { return *cache_; }

  std::vector<float> q, cos, sin;
  std::vector<std::byte> entries, compressed;
  std::vector<int32_t> picks;

 private:
  Case case_;
  int length_;
  int position_ = 0;
  std::unique_ptr<FakeCache> cache_;
};

std::vector<float> Sinks(const Case& c) {
  return RandomFloats(99).Vector(c.heads);
}

template <typename T>
void Append(std::vector<T>& to, const std::vector<T>& from, int64_t begin, int64_t count) {
  to.insert(to.end(), from.begin() + begin, from.begin() + begin + count);
}

// Runs every sequence to its end; next(remaining, which) says how many rows (0: none) go into a step. Returns
// outputs.
template <typename Next>
std::vector<std::vector<float>> RunAll(const KernelTable& table, const KernelContext& ctx, const Case& c,
                                       std::vector<Sequence*> all, int slack, const Next& next) {
  const std::vector<float> sink = Sinks(c);
  const int64_t bytes = c.layout().bytes();
  const int64_t row_values = int64_t{c.heads} * c.dim;
  std::vector<std::vector<float>> outs(all.size());
  for (Sequence* s : all) s->Reset(slack);
  for (bool more = true; more;) {
    more = false;
    std::vector<SequenceRows> rows;
    std::vector<size_t> who;
    std::vector<float> q, cos, sin;
    std::vector<std::byte> entries;
    std::vector<int32_t> picks;
    int total = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      Sequence& s = *all[i];
      const int at = s.position();
      const int count = std::min(next(s.length() - at, i), s.length() - at);
      more = more || at + count < s.length();
      if (count == 0) continue;
      Append(q, s.q, at * row_values, count * row_values);
      Append(cos, s.cos, at * 32, count * 32);
      Append(sin, s.sin, at * 32, count * 32);
      Append(entries, s.entries, at * bytes, count * bytes);
      Append(picks, s.picks, int64_t{at} * c.topk, int64_t{count} * c.topk);
      s.Advance(count);
      rows.push_back({total, count, at, s.cache().view()});
      who.push_back(i);
      total += count;
    }
    std::vector<float> out(total * row_values, std::nanf(""));
    const AttentionArgs args{.sequences = rows,
                             .rows = total,
                             .heads = c.heads,
                             .window = c.window,
                             .layout = c.layout(),
                             .compressed = c.compressed,
                             .ratio = c.ratio,
                             .topk = c.topk,
                             .q = q.data(),
                             .query_eps = 1e-6f,
                             .entries = entries.data(),
                             .sink = {DType::kF32, c.heads, reinterpret_cast<const std::byte*>(sink.data())},
                             .picks = picks.data(),
                             .cos = cos.data(),
                             .sin = sin.data(),
                             .out = out.data()};
    table.attention(ctx, args);
    EXPECT_EQ(ctx.scratch->used(), 0u);
    table.store_keys(ctx, {.rows = total, .sequences = rows, .entries = entries.data()});
    for (size_t k = 0; k < rows.size(); ++k) {
      Append(outs[who[k]], out, rows[k].first_row * row_values, rows[k].num_rows * row_values);
    }
  }
  return outs;
}

const auto kWhole = [](int left, size_t) { return left; };

double WorstRowError(const std::vector<float>& got, const std::vector<float>& want, int64_t row) {
  double worst = 0;
  for (size_t t = 0; t < want.size() / row; ++t) {
    double error = 0;
    double norm = 0;
    for (int64_t i = t * row; i < static_cast<int64_t>(t + 1) * row; ++i) {
      error += std::pow(static_cast<double>(got[i]) - want[i], 2);
      norm += std::pow(static_cast<double>(want[i]), 2);
    }
    const double e = std::sqrt(error / norm);
    if (!(e <= worst)) worst = e;  // a NaN counts
  }
  return worst;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (Numerics n : {Numerics::kClean, Numerics::kFaithful}) {
    cases.push_back({.numerics = n, .heads = 2, .dim = 128, .window = 32});
    cases.push_back(
        {.numerics = n, .heads = 5, .dim = 192, .window = 32, .compressed = CompressedKeys::kPicked});
    cases.push_back({.numerics = n,
                     .heads = 3,
                     .dim = 128,
                     .window = 128,
                     .compressed = CompressedKeys::kAll,
                     .ratio = 128});
    cases.push_back({.numerics = n,
                     .heads = 17,
                     .dim = 512,
                     .window = 20,
                     .compressed = CompressedKeys::kPicked,
                     .topk = 40});
  }
  return cases;
}

class Attention : public testing::TestWithParam<Case> {};

TEST_P(Attention, FollowsTheDefinition) {
  const Case& c = GetParam();
  KernelHost host(2);
  const KernelContext ctx = host.context(c.numerics);
  const double tolerance =
      c.numerics == Numerics::kFaithful ? 2 * tolerances::kBf16Flips : tolerances::kFloat32;
  for (int length : {1, 2, 5, 9, 31, 33, 129, c.dim == 512 ? 70 : 260}) {
    Sequence s(c, length, 7 + length);
    const auto want = RunAll(RefKernels(), ctx, c, {&s}, 4, kWhole);
    for (const KernelTable* table : CpuTables()) {
      const auto got = RunAll(*table, ctx, c, {&s}, 4, kWhole);
      EXPECT_LE(WorstRowError(got[0], want[0], int64_t{c.heads} * c.dim), tolerance)
          << table->name << " length " << length;
    }
  }
}

TEST_P(Attention, IsTheSameToTheBitInAnyChunksAndCompany) {
  const Case& c = GetParam();
  for (const KernelTable* table : CpuTables()) {
    Sequence a(c, c.dim == 512 ? 70 : 260, 1);
    Sequence b(c, 75, 2);
    KernelHost one(1);
    const auto want_a = RunAll(*table, one.context(c.numerics), c, {&a}, 0, kWhole);
    const auto want_b = RunAll(*table, one.context(c.numerics), c, {&b}, 0, kWhole);
    for (int threads : {1, 2, 3}) {
      KernelHost host(threads);
      const KernelContext ctx = host.context(c.numerics);
      EXPECT_EQ(RunAll(*table, ctx, c, {&b}, 0, [](int, size_t) { return 1; }), want_b)
          << table->name << " row by row, " << threads << " threads";
      for (uint32_t seed = 0; seed < 3; ++seed) {
        RandomFloats random(seed);
        const auto got = RunAll(*table, ctx, c, {&a, &b}, static_cast<int>(3 * seed),
                                [&](int, size_t) { return random.Below(seed == 0 ? 4 : 60); });
        EXPECT_EQ(got[0], want_a[0]) << table->name << " seed " << seed << ", " << threads << " threads";
        EXPECT_EQ(got[1], want_b[0]) << table->name << " seed " << seed << ", " << threads << " threads";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Attention, testing::ValuesIn(Cases()));

// Released heads: any number of rows of a sequence chooses other kernels.
std::vector<Case> CudaCases() {
  std::vector<Case> cases = Cases();
  cases.push_back({.numerics = Numerics::kFaithful,
                   .heads = 64,
                   .dim = 512,
                   .window = 40,
                   .compressed = CompressedKeys::kPicked,
                   .topk = 12});
  return cases;
}

using AttentionCuda = OnDevice<testing::TestWithParam<Case>>;

TEST_P(AttentionCuda, FollowsTheDefinition) {
  const Case& c = GetParam();
  KernelHost host(2);
  for (int length : {1, 2, 5, 9, 31, 33, 129, c.dim == 512 ? 70 : 260}) {
    Sequence s(c, length, 7 + length);
    const auto want = RunAll(RefKernels(), host.context(c.numerics), c, {&s}, 4, kWhole);
    const auto got = RunAll(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {&s}, 4, kWhole);
    const bool faithful = c.numerics == Numerics::kFaithful;
    const double tolerance = faithful ? tolerances::kBf16Probabilities : tolerances::kSplitBf16;
    EXPECT_LE(WorstRowError(got[0], want[0], static_cast<int64_t>(want[0].size())), tolerance)
        << "length " << length;
    // A single row's roundings may all be near their largest.
    EXPECT_LE(WorstRowError(got[0], want[0], int64_t{c.heads} * c.dim), 2 * tolerance) << "length " << length;
  }
}

TEST_P(AttentionCuda, IsTheSameToTheBitInAnyChunksAndCompany) {
  const Case& c = GetParam();
  const KernelTable& table = CudaKernelsForHostArguments();
  const KernelContext ctx = device_->context(c.numerics);
  Sequence a(c, c.dim == 512 ? 70 : 260, 1);
  Sequence b(c, 75, 2);
  const auto want_a = RunAll(table, ctx, c, {&a}, 0, kWhole);
  const auto want_b = RunAll(table, ctx, c, {&b}, 0, kWhole);
  EXPECT_EQ(RunAll(table, ctx, c, {&b}, 0, [](int, size_t) { return 1; }), want_b) << "row by row";
  for (uint32_t seed = 0; seed < 3; ++seed) {
    RandomFloats random(seed);
    const auto got = RunAll(table, ctx, c, {&a, &b}, static_cast<int>(3 * seed),
                            [&](int, size_t) { return random.Below(seed == 0 ? 4 : 60); });
    EXPECT_EQ(got[0], want_a[0]) << "seed " << seed;
    EXPECT_EQ(got[1], want_b[0]) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionCuda, testing::ValuesIn(CudaCases()));

// Rows of one sequence that see each other, by two kernels: what racecheck can follow.
using AttentionLittleStepsCuda = OnDevice<>;

TEST_F(AttentionLittleStepsCuda, FollowTheDefinition) {
  const Case c = CudaCases().back();
  KernelHost host(2);
  for (int length : {5, 33}) {
    Sequence s(c, length, length);
    const auto want = RunAll(RefKernels(), host.context(c.numerics), c, {&s}, 0, kWhole);
    const auto got = RunAll(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {&s}, 0, kWhole);
    EXPECT_LE(WorstRowError(got[0], want[0], static_cast<int64_t>(want[0].size())),
              tolerances::kBf16Probabilities)
        << "length " << length;
  }
}

// The parts of one row are spread over threads when there is enough to do: released heads, one row.
TEST(AttentionOfOneRow, IsTheSameToTheBitOnAnyThreads) {
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    const Case c{
        .numerics = numerics, .heads = 64, .dim = 512, .window = 64, .compressed = CompressedKeys::kPicked};
    for (const KernelTable* table : CpuTables()) {
      Sequence s(c, 67, 5);
      const auto tail = [](int left, size_t) { return left > 3 ? left - 3 : 1; };
      KernelHost one(1);
      KernelHost three(3);
      const auto want = RunAll(*table, one.context(numerics), c, {&s}, 0, kWhole);
      EXPECT_EQ(RunAll(*table, three.context(numerics), c, {&s}, 0, tail), want) << table->name;
    }
  }
}

// A huge sink takes all the weight: no overflow, outputs near zero.
void ExpectSinkInMaximum(const KernelTable& table, const KernelContext& ctx) {
  const EntryLayout layout{CacheFormat::kFloat32, 128, 64};
  FakeCache cache({.entry = layout, .window_slots = 4});
  std::vector<float> ones(128, 1.f);
  const std::vector<float> cos(32, 1.f), sin(32, 0.f), sink = {200.f};
  const std::vector<SequenceRows> rows = {{0, 1, 0, cache.view()}};
  std::vector<float> out(128, 7.f);
  table.attention(ctx, {.sequences = rows,
                        .rows = 1,
                        .heads = 1,
                        .window = 4,
                        .layout = layout,
                        .q = ones.data(),
                        .query_eps = 1e-6f,
                        .entries = reinterpret_cast<const std::byte*>(ones.data()),
                        .sink = {DType::kF32, 1, reinterpret_cast<const std::byte*>(sink.data())},
                        .cos = cos.data(),
                        .sin = sin.data(),
                        .out = out.data()});
  for (float v : out) EXPECT_LT(std::fabs(v), 1e-30f) << table.name;
}

TEST(AttentionSink, TakesPartInTheMaximum) {
  KernelHost host(1);
  for (const KernelTable* table : CpuTables()) ExpectSinkInMaximum(*table, host.context(Numerics::kClean));
}

using AttentionSinkCuda = OnDevice<>;

TEST_F(AttentionSinkCuda, TakesPartInTheMaximum) {
  ExpectSinkInMaximum(CudaKernelsForHostArguments(), device_->context(Numerics::kClean));
}

}  // namespace
}  // namespace foresight::attention_test
