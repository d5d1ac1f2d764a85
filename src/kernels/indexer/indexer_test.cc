#include "kernels/indexer/indexer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"
#include "kernels/indexer/indexer_parts.h"

namespace foresight::indexer_test {
namespace {

struct Case {
  Numerics numerics = Numerics::kClean;
  int heads = 4;
  int dim = 128;
  int rope_dim = 64;
  int topk = 8;

  IndexKeyLayout layout() const {
    return {numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32, dim};
  }
};

struct Sequence {
  Sequence(const Case& c, int length, uint32_t seed, bool half_zero = false)
      : length(length),
        cache({.entry = {.dim = 64}, .index_key = c.layout(), .num_entries = length / 4, .per_block = 64}) {
    RandomFloats random(seed);
    q = random.Vector(int64_t{length} * c.heads * c.dim);
    for (float& v : q) v = c.numerics == Numerics::kFaithful ? RoundBf16(v) : v;
    w = random.Vector(int64_t{length} * c.heads);
    cos.assign(length * (c.rope_dim / 2), 1.f);
    sin.assign(cos.size(), 0.f);
    for (size_t i = 0; i < cos.size(); ++i) {
      const float angle = random.Next();
      cos[i] = std::cos(angle);
      sin[i] = std::sin(angle);
    }
    for (int s = 0; s < length / 4; ++s) {
      std::vector<float> key = random.Vector(c.dim);
      if (half_zero && s % 2 == 0) std::fill(key.begin(), key.end(), 0.f);
      keys.push_back(key);
    }
  }
  void WriteKeys(const Case& c, int begin, int end) {
    for (int s = begin / 4; s < end / 4; ++s) {
      EncodeIndexKey(c.layout(), keys[s].data(), cache.view().index_keys[s]);
    }
  }

  int length;
  FakeCache cache;
  std::vector<float> q, w, cos, sin;
  std::vector<std::vector<float>> keys;
};

// Of all rows of a step, [rows, ...] each.
struct RowInputs {
  std::vector<float> q, w, cos, sin;
};

// The picks of a step whose rows are `rows`.
std::vector<int32_t> Pick(const KernelTable& table, const KernelContext& ctx, const Case& c,
                          const std::vector<SequenceRows>& rows, int64_t entries_max, RowInputs inputs) {
  const int total = rows.back().first_row + rows.back().num_rows;
  std::vector<int32_t> picks(int64_t{total} * c.topk, -7);
  table.indexer(ctx, {.sequences = rows,
                      .rows = total,
                      .entries_max = entries_max,
                      .heads = c.heads,
                      .rope_dim = c.rope_dim,
                      .topk = c.topk,
                      .key = c.layout(),
                      .iq = inputs.q.data(),
                      .w = inputs.w.data(),
                      .cos = inputs.cos.data(),
                      .sin = inputs.sin.data(),
                      .picks = picks.data()});
  return picks;
}

// Runs rows [begin, end) of each sequence (ranges side by side in one step); picks of all.
std::vector<int32_t> Picks(const KernelTable& table, const KernelContext& ctx, const Case& c,
                           const std::vector<std::pair<Sequence*, std::pair<int, int>>>& parts) {
  std::vector<float> q, w, cos, sin;
  std::vector<SequenceRows> rows;
  int total = 0;
  int64_t entries_max = 0;
  const auto append = [](std::vector<float>& to, const std::vector<float>& from, int64_t width, int begin,
                         int end) {
    to.insert(to.end(), from.begin() + begin * width, from.begin() + end * width);
  };
  for (const auto& [s, range] : parts) {
    const auto [begin, end] = range;
    append(q, s->q, int64_t{c.heads} * c.dim, begin, end);
    append(w, s->w, c.heads, begin, end);
    append(cos, s->cos, c.rope_dim / 2, begin, end);
    append(sin, s->sin, c.rope_dim / 2, begin, end);
    s->WriteKeys(c, begin, end);
    rows.push_back({total, end - begin, begin, s->cache.view()});
    total += end - begin;
    entries_max = std::max<int64_t>(entries_max, end / 4);
  }
  std::vector<int32_t> picks = Pick(table, ctx, c, rows, entries_max, {q, w, cos, sin});
  EXPECT_EQ(ctx.scratch->used(), 0u);
  return picks;
}

// Those of the rows of a sequence of 300 in steps of random sizes, small ones at the end, each below a row of
// another sequence.
std::vector<int32_t> PicksOfChunks(const KernelTable& table, const KernelContext& ctx, const Case& c,
                                   uint32_t seed, int rows_of_small_steps = 100) {
  RandomFloats random(seed);
  Sequence fresh(c, 300, 1);  // keys that no row has seen yet are NaN
  Sequence b(c, 210, 2);
  std::vector<int32_t> got;
  for (int at = 0; at < 300;) {
    const int count = std::min(1 + random.Below(at < 300 - rows_of_small_steps ? 70 : 3), 300 - at);
    const int other = std::min(at, 209);
    b.WriteKeys(c, 0, other);
    const auto picks = Picks(table, ctx, c, {{&b, {other, other + 1}}, {&fresh, {at, at + count}}});
    got.insert(got.end(), picks.begin() + c.topk, picks.end());
    at += count;
  }
  return got;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (Numerics n : {Numerics::kClean, Numerics::kFaithful}) {
    cases.push_back({.numerics = n, .heads = 2, .topk = 6});
    cases.push_back({.numerics = n, .heads = 5, .dim = 64, .topk = 40});
    cases.push_back({.numerics = n, .heads = 64, .topk = 33});
    cases.push_back({.numerics = n, .heads = 3, .dim = 32, .rope_dim = 32, .topk = 1});
  }
  return cases;
}

class Indexer : public testing::TestWithParam<Case> {};

TEST_P(Indexer, PicksWhatTheDefinitionPicks) {
  const Case& c = GetParam();
  KernelHost host(2);
  const KernelContext ctx = host.context(c.numerics);
  for (int length : {1, 2, 3, 4, 5, 27, 28, 33, 300}) {
    Sequence s(c, length, 3 + length);
    const auto want = Picks(RefKernels(), ctx, c, {{&s, {0, length}}});
    for (const KernelTable* table : CpuTables()) {
      const auto got = Picks(*table, ctx, c, {{&s, {0, length}}});
      int differences = 0;
      for (size_t i = 0; i < want.size(); ++i) differences += got[i] != want[i];
      // Scores nearer to each other than float32's error may change places: none do in these cases.
      EXPECT_EQ(differences, 0) << table->name << " length " << length;
    }
  }
}

TEST_P(Indexer, PicksTheSameInAnyChunksAndCompany) {
  const Case& c = GetParam();
  for (const KernelTable* table : CpuTables()) {
    Sequence a(c, 300, 1);
    KernelHost one(1);
    const auto want = Picks(*table, one.context(c.numerics), c, {{&a, {0, 300}}});
    for (int threads : {1, 3}) {
      KernelHost host(threads);
      const auto got = PicksOfChunks(*table, host.context(c.numerics), c, threads);
      EXPECT_EQ(got, want) << table->name << " " << threads << " threads";
    }
  }
}

// Every second key is zero and so are its scores; the weights are negative in part: ties at zero decide.
TEST_P(Indexer, BreaksTiesByTheLowerIndex) {
  const Case& c = GetParam();
  KernelHost host(2);
  const KernelContext ctx = host.context(c.numerics);
  Sequence s(c, 280, 11, /*half_zero=*/true);
  for (size_t i = 0; i < s.w.size(); ++i) s.w[i] = -std::fabs(s.w[i]);  // scores are -0 or below
  const auto want = Picks(RefKernels(), ctx, c, {{&s, {0, 280}}});
  for (const KernelTable* table : CpuTables()) {
    EXPECT_EQ(Picks(*table, ctx, c, {{&s, {0, 280}}}), want) << table->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Indexer, testing::ValuesIn(Cases()));

using IndexerCuda = OnDevice<testing::TestWithParam<Case>>;

TEST_P(IndexerCuda, PicksWhatTheDefinitionPicks) {
  const Case& c = GetParam();
  KernelHost host(2);
  for (int length : {1, 2, 3, 4, 5, 27, 28, 33, 300}) {
    Sequence s(c, length, 3 + length);
    EXPECT_EQ(Picks(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {{&s, {0, length}}}),
              Picks(RefKernels(), host.context(c.numerics), c, {{&s, {0, length}}}))
        << "length " << length;
  }
}

TEST_P(IndexerCuda, PicksTheSameInAnyChunksAndCompany) {
  const Case& c = GetParam();
  const KernelContext ctx = device_->context(c.numerics);
  Sequence a(c, 300, 1);
  const auto want = Picks(CudaKernelsForHostArguments(), ctx, c, {{&a, {0, 300}}});
  for (uint32_t seed : {1, 3}) {
    EXPECT_EQ(PicksOfChunks(CudaKernelsForHostArguments(), ctx, c, seed), want) << "seed " << seed;
  }
}

// Few steps: what racecheck can follow.
TEST_P(IndexerCuda, PicksTheSameInALittleCompany) {
  const Case& c = GetParam();
  const KernelContext ctx = device_->context(c.numerics);
  Sequence a(c, 300, 1);
  const auto want = Picks(CudaKernelsForHostArguments(), ctx, c, {{&a, {0, 300}}});
  EXPECT_EQ(PicksOfChunks(CudaKernelsForHostArguments(), ctx, c, /*seed=*/1, /*rows_of_small_steps=*/8),
            want);
}

TEST_P(IndexerCuda, BreaksTiesByTheLowerIndex) {
  const Case& c = GetParam();
  KernelHost host(2);
  Sequence s(c, 280, 11, /*half_zero=*/true);
  for (size_t i = 0; i < s.w.size(); ++i) s.w[i] = -std::fabs(s.w[i]);
  EXPECT_EQ(Picks(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {{&s, {0, 280}}}),
            Picks(RefKernels(), host.context(c.numerics), c, {{&s, {0, 280}}}));
}

INSTANTIATE_TEST_SUITE_P(Shapes, IndexerCuda, testing::ValuesIn(Cases()));

using IndexerTilesCuda = OnDevice<>;

// Rows of scores longer than a block of threads, in more turns than one.
TEST_F(IndexerTilesCuda, DoNotChangePicks) {
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    const Case c{.numerics = numerics, .heads = 8, .dim = 32, .rope_dim = 32, .topk = 700};
    KernelHost host(2);
    Sequence s(c, 40000, 4);
    s.WriteKeys(c, 0, 40000);
    const auto run = [&](const KernelTable& table, const KernelContext& ctx, int begin) {
      return Picks(table, ctx, c, {{&s, {begin, 40000}}});
    };
    const auto many = run(CudaKernelsForHostArguments(), device_->context(numerics), 38500);
    const auto last = run(CudaKernelsForHostArguments(), device_->context(numerics), 39999);
    EXPECT_TRUE(std::equal(last.begin(), last.end(), many.end() - c.topk));
    const auto want = run(RefKernels(), host.context(numerics), 39999);
    // Among ten thousand scores some are nearer to each other than float32's error.
    std::vector<int32_t> common;
    std::set_intersection(last.begin(), last.end(), want.begin(), want.end(), std::back_inserter(common));
    EXPECT_GE(common.size(), 698u);
  }
}

// Sequences with long contexts, of which only the last rows exist. Keys are random codes, or all the same.
struct LongSequence {
  // From key `first_wide` on every 24th has blocks whose scales are up to 2^40 apart.
  LongSequence(const Case& c, int entries, int rows, uint32_t seed, bool all_equal = false,
               int per_block = 64, int first_wide = std::numeric_limits<int>::max())
      : entries(entries),
        rows(rows),
        cache({.entry = {.format = CacheFormat::kPacked, .dim = 64},
               .index_key = c.layout(),
               .num_entries = entries,
               .per_block = per_block}) {
    std::mt19937 random(seed);
    const int64_t bytes = c.layout().bytes();
    std::vector<std::byte> key(static_cast<size_t>(bytes));
    for (int s = 0; s < entries; ++s) {
      for (int64_t i = 0; i < bytes && (s == 0 || !all_equal); ++i) {
        // Scales of 2^-3 to 1: sums of products of one head's are exact in float32.
        key[i] = static_cast<std::byte>(i < c.dim / 2 ? random() >> 24 : 124 + random() % 4);
      }
      std::memcpy(cache.view().index_keys[s], key.data(), key.size());
      if (s >= first_wide && (s - first_wide) % 24 == 0) {
        for (int b = 0; b < 4; ++b)
          cache.view().index_keys[s][c.dim / 2 + b] ^= std::byte((s * 7 + b * 13) & 31);
      }
    }
    RandomFloats floats(seed + 1);
    q = floats.Vector(int64_t{rows} * c.heads * c.dim);
    for (float& v : q) v = RoundBf16(v);
    w = floats.Vector(int64_t{rows} * c.heads);
  }
  // Makes a head of the row one whose transform has blocks 2^7 apart.
  void WidenQuery(const Case& c, int row, int head) {
    float* of_head = &q[(int64_t{row} * c.heads + head) * c.dim];
    std::fill(of_head, of_head + c.dim, 0.0f);
    of_head[0] = 1.0f;
    of_head[32] = 1.0078125f;
  }

  int entries;
  int rows;
  FakeCache cache;
  std::vector<float> q, w;
};

// Of all rows from `skip` on of each sequence, in one step.
std::vector<int32_t> LongPicks(const KernelTable& table, const KernelContext& ctx, const Case& c,
                               const std::vector<const LongSequence*>& sequences, int skip = 0) {
  std::vector<float> q, w;
  std::vector<SequenceRows> rows;
  int total = 0;
  int64_t entries_max = 0;
  for (const LongSequence* s : sequences) {
    const int count = s->rows - skip;
    rows.push_back({total, count, s->entries * int64_t{4} + 3 - count, s->cache.view()});
    q.insert(q.end(), s->q.begin() + int64_t{skip} * c.heads * c.dim, s->q.end());
    w.insert(w.end(), s->w.begin() + int64_t{skip} * c.heads, s->w.end());
    total += count;
    entries_max = std::max<int64_t>(entries_max, s->entries);
  }
  const std::vector<float> cos(int64_t{total} * c.rope_dim / 2, 0.75f);
  const std::vector<float> sin(cos.size(), 0.6f);
  return Pick(table, ctx, c, rows, entries_max, {q, w, cos, sin});
}

// How many picks of the rows in `got` are not those of `want`.
int Differences(const Case& c, const std::vector<int32_t>& got, const std::vector<int32_t>& want) {
  int differences = 0;
  for (size_t row = 0; row < got.size(); row += c.topk) {
    const std::set<int32_t> of_row(want.begin() + row, want.begin() + row + c.topk);
    for (int i = 0; i < c.topk; ++i) differences += !of_row.contains(got[row + i]);
  }
  return differences;
}

using IndexerLongCuda = OnDevice<>;

// One head: scores are exact up to one rounding, and many are equal.
TEST_F(IndexerLongCuda, PicksWhatTheDefinitionPicksAtEveryLength) {
  const Case c{.numerics = Numerics::kFaithful, .heads = 1, .topk = 512};
  for (int entries : {511, 512, 513, 1000, 4097, 16384, 16385, 65535, 65536, 65537, 262143, 300000}) {
    for (bool all_equal : {false, true}) {
      const LongSequence s(c, entries, 2, entries, all_equal);
      KernelHost host(2);
      EXPECT_EQ(LongPicks(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {&s}),
                LongPicks(RefKernels(), host.context(c.numerics), c, {&s}))
          << entries << " entries" << (all_equal ? ", all equal" : "");
    }
  }
}

// Scores of keys and queries that no bytes can hold; some are nearer to each other than float32's error.
TEST_F(IndexerLongCuda, PicksAmongBlocksOfAnyScales) {
  const Case c{.numerics = Numerics::kFaithful, .heads = 64, .topk = 512};
  LongSequence s(c, 5000, 6, 3, /*all_equal=*/false, /*per_block=*/64, /*first_wide=*/0);
  for (int head = 0; head < c.heads; head += 5) s.WidenQuery(c, 4, head);
  KernelHost host(2);
  EXPECT_LE(Differences(c, LongPicks(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {&s}),
                        LongPicks(RefKernels(), host.context(c.numerics), c, {&s})),
            6);
}

// All heads and few keys more than are picked, some of them no bytes: what racecheck can follow.
TEST_F(IndexerLongCuda, PicksOfLittleAreTheDefinitions) {
  const Case c{.numerics = Numerics::kFaithful, .heads = 64, .topk = 512};
  KernelHost host(2);
  for (int rows : {1, 7}) {
    LongSequence s(c, 600, rows, 2, /*all_equal=*/false, /*per_block=*/64, /*first_wide=*/400);
    s.WidenQuery(c, 0, 17);
    EXPECT_LE(Differences(c, LongPicks(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {&s}),
                          LongPicks(RefKernels(), host.context(c.numerics), c, {&s})),
              rows);
  }
}

// All heads of the released models, rows of verification, sequences below and above the number of picks.
TEST_F(IndexerLongCuda, PicksTheSameAloneAndInCompany) {
  const Case c{.numerics = Numerics::kFaithful, .heads = 64, .topk = 512};
  const KernelContext ctx = device_->context(c.numerics);
  std::vector<LongSequence> sequences;
  int seed = 1;
  for (const auto& [entries, rows] : std::vector<std::pair<int, int>>{
           {5000, 8}, {130, 3}, {513, 6}, {70000, 5}, {2049, 1}, {9000, 40}, {512, 2}, {777, 7}}) {
    sequences.emplace_back(c, entries, rows, seed++);
  }
  std::vector<const LongSequence*> all;
  for (const LongSequence& s : sequences) all.push_back(&s);
  const std::vector<int32_t> together = LongPicks(CudaKernelsForHostArguments(), ctx, c, all);
  int64_t at = 0;
  for (const LongSequence& s : sequences) {
    const std::vector<int32_t> own(together.begin() + at, together.begin() + at + int64_t{s.rows} * c.topk);
    at += int64_t{s.rows} * c.topk;
    for (int skip : {0, s.rows / 2, s.rows - 1}) {
      EXPECT_EQ(LongPicks(CudaKernelsForHostArguments(), ctx, c, {&s}, skip),
                std::vector<int32_t>(own.begin() + int64_t{skip} * c.topk, own.end()))
          << s.entries << " entries, rows from " << skip;
    }
    KernelHost host(2);
    const std::vector<int32_t> want = LongPicks(RefKernels(), host.context(c.numerics), c, {&s}, s.rows - 1);
    EXPECT_LE(Differences(c, {own.end() - c.topk, own.end()}, want), 2) << s.entries << " entries";
  }
}

// Rows of many sequences, one each, and with the row before: more keys than a thread block holds at a time.
TEST_F(IndexerLongCuda, PicksTheSameInStepsOfSingleRows) {
  const Case c{.numerics = Numerics::kFaithful, .heads = 64, .topk = 1024};
  const KernelContext ctx = device_->context(c.numerics);
  std::vector<LongSequence> sequences;
  int seed = 1;
  for (int entries : {300000, 40000, 600, 5000, 90000, 1025}) sequences.emplace_back(c, entries, 2, seed++);
  std::vector<const LongSequence*> all;
  for (const LongSequence& s : sequences) all.push_back(&s);
  const std::vector<int32_t> together = LongPicks(CudaKernelsForHostArguments(), ctx, c, all, /*skip=*/1);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t> alone =
        LongPicks(CudaKernelsForHostArguments(), ctx, c, {&sequences[i]}, /*skip=*/1);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + i * c.topk)) << "sequence " << i;
    const std::vector<int32_t> both = LongPicks(CudaKernelsForHostArguments(), ctx, c, {&sequences[i]});
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), both.begin() + c.topk)) << "sequence " << i;
  }
}

// Bits of the scores, and the maxima that go with them.
TEST_F(IndexerLongCuda, ScoresTheSameAloneAndInCompany) {
  const Case c{.numerics = Numerics::kFaithful, .heads = 64, .topk = 512};
  const KernelContext ctx = device_->context(c.numerics);
  const int entries = 1037;
  const int64_t stride = 2048;
  // Blocks of other sizes than a tile take another way to the tensor cores.
  LongSequence s(c, entries, 13, 1);
  LongSequence in_small_blocks(c, entries, 13, 1, /*all_equal=*/false, /*per_block=*/16);
  // Keys and queries that no bytes can hold, beside others.
  LongSequence wide(c, entries, 13, 1, /*all_equal=*/false, /*per_block=*/64, /*first_wide=*/3);
  for (LongSequence* of : {&s, &in_small_blocks, &wide}) {
    of->WidenQuery(c, 3, 17);
    of->WidenQuery(c, 8, 63);
  }
  const IndexerParts parts = *CudaIndexerParts();
  // Of rows from `begin` on, [rows, entries], after those of `before` rows of another sequence.
  const auto scores_of = [&](const LongSequence& of, int begin, int end) {
    const int rows = end - begin;
    DeviceCopies copies(ctx);
    std::vector<SequenceRows> sequences = {
        {0, rows, entries * int64_t{4} + 3 - (of.rows - begin), of.cache.view()}};
    const auto of_rows = [&](const std::vector<float>& x) {
      const int64_t width = std::ssize(x) / of.rows;
      return std::vector<float>(x.begin() + begin * width, x.begin() + end * width);
    };
    const std::vector<float> angles(rows * c.rope_dim / 2, 0.6f);
    const std::vector<float> q = of_rows(of.q), w = of_rows(of.w);
    std::vector<float> scores(rows * stride, -7.0f), maxima(scores.size() / 16, -7.0f);
    parts.scores(ctx,
                 {.sequences = copies.In(std::span<const SequenceRows>(sequences), 4),
                  .rows = rows,
                  .entries_max = entries,
                  .heads = c.heads,
                  .rope_dim = c.rope_dim,
                  .topk = c.topk,
                  .key = c.layout(),
                  .iq = const_cast<float*>(copies.In(q.data(), std::ssize(q))),
                  .w = copies.In(w.data(), std::ssize(w)),
                  .cos = copies.In(angles.data(), std::ssize(angles)),
                  .sin = copies.In(angles.data(), std::ssize(angles))},
                 {copies.InOut(scores.data(), std::ssize(scores)),
                  copies.InOut(maxima.data(), std::ssize(maxima)), stride});
    copies.Finish();
    for (int r = 0; r < rows; ++r) {
      const int visible = static_cast<int>((sequences[0].first_position + r + 1) / 4);
      const float* row = &scores[r * stride];
      for (int i = 0; i < visible; i += 16) {
        EXPECT_EQ(maxima[(r * stride + i) / 16], *std::max_element(row + i, row + std::min(i + 16, visible)));
      }
    }
    return scores;
  };
  const std::vector<float> together = scores_of(s, 0, s.rows);
  EXPECT_EQ(scores_of(in_small_blocks, 0, s.rows), together);
  for (int row : {0, 3, 7, 8, 12}) {
    const std::vector<float> want(together.begin() + row * stride, together.begin() + (row + 1) * stride);
    EXPECT_EQ(scores_of(s, row, row + 1), want) << "row " << row;
    EXPECT_EQ(scores_of(in_small_blocks, row, row + 1), want) << "row " << row;
  }
  const std::vector<float> beside_wide = scores_of(wide, 0, s.rows);
  for (int row = 0; row < s.rows; ++row) {
    const auto begin = beside_wide.begin() + row * stride;
    EXPECT_EQ(scores_of(wide, row, row + 1), std::vector<float>(begin, begin + stride)) << "row " << row;
    for (int i = 0; i < entries - 4; ++i) {
      if (i % 24 == 3) continue;
      ASSERT_EQ(begin[i], together[row * stride + i]) << "row " << row << ", key " << i;
    }
  }
}

// A head more than a product takes.
TEST_F(IndexerLongCuda, TakesAnyNumberOfHeads) {
  for (int heads : {1, 63, 65, 128}) {
    const Case c{.numerics = Numerics::kFaithful, .heads = heads, .topk = 64};
    const LongSequence s(c, 3000, 6, heads);
    KernelHost host(2);
    EXPECT_LE(Differences(c, LongPicks(CudaKernelsForHostArguments(), device_->context(c.numerics), c, {&s}),
                          LongPicks(RefKernels(), host.context(c.numerics), c, {&s})),
              4)
        << heads << " heads";
  }
}

// A step with more scores than are held at a time: many rows of a long context.
TEST(IndexerTiles, DoNotChangePicks) {
  const Case c{.heads = 1, .dim = 32, .rope_dim = 32, .topk = 3};
  for (const KernelTable* table : CpuTables()) {
    KernelHost host(2);
    const KernelContext ctx = host.context(c.numerics);
    Sequence s(c, 2000, 4);
    const auto whole = Picks(*table, ctx, c, {{&s, {0, 2000}}});
    const auto last = Picks(*table, ctx, c, {{&s, {1999, 2000}}});
    EXPECT_TRUE(std::equal(last.begin(), last.end(), whole.end() - c.topk)) << table->name;
    EXPECT_EQ(Picks(RefKernels(), ctx, c, {{&s, {1999, 2000}}}), last) << table->name;
  }
}

}  // namespace
}  // namespace foresight::indexer_test
