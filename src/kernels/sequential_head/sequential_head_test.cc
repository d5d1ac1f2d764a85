// The sequential head against a plain float64 evaluation of dspark.md 1.5 and 1.6, its tables against each
// other, and row purity.
#include "kernels/sequential_head/sequential_head.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cache_fixture.h"
#include "kernels/weight_fixture.h"
#include "tests/tolerances.h"

namespace foresight::sequential_head_test {
namespace {

struct Matrix {
  Matrix() = default;
  Matrix(int64_t rows, int64_t cols, float scale, RandomFloats& random) : rows(rows), cols(cols) {
    for (int64_t i = 0; i < rows * cols; ++i) values.push_back(FloatToBf16(random.Next() * scale));
  }
  double At(int64_t r, int64_t c) const { return Bf16ToFloat(values[r * cols + c]); }
  MatrixView view() const {
    return {DType::kBF16, rows, cols, reinterpret_cast<const std::byte*>(values.data()), nullptr};
  }

  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<bf16> values;
};

struct Head {
  Head(MarkovHeadType type, int vocab, int dim, int rank, bool has_confidence, uint32_t seed)
      : vocab(vocab), dim(dim), rank(rank) {
    RandomFloats random(seed);
    weights.type = type;
    if (rank > 0) {
      w1 = Matrix(vocab, rank, 1, random);
      w2 = Matrix(vocab, rank, 1, random);
      weights.w1 = w1.view();
      weights.w2 = w2.view();
    }
    if (type != MarkovHeadType::kVanilla) {
      const bool gated = type == MarkovHeadType::kGated;
      proj = Matrix(gated ? rank : 3 * rank, gated ? dim + rank : dim + 2 * rank, 0.2f, random);
      bias = Matrix(1, proj.rows, 1, random);
      weights.proj = proj.view();
      weights.bias = {DType::kBF16, proj.rows, bias.view().data};
    }
    if (has_confidence) {
      confidence = Matrix(1, dim + rank, 0.3f, random);
      weights.confidence = confidence.view();
    }
  }

  int vocab, dim, rank;
  Matrix w1, w2, proj, bias, confidence;
  SequentialHeadWeights weights;
};

struct Round {
  std::vector<int32_t> previous;         // [positions, rows]
  std::vector<float> hidden;             // [positions, rows, D]
  std::vector<float> logits;             // [positions, rows, V], base before and corrected after
  std::vector<float> confidence, state;  // [positions, rows], [rows, r]
};

Round MakeRound(const Head& head, int rows, int positions, uint32_t seed) {
  RandomFloats random(seed);
  Round round;
  for (int i = 0; i < rows * positions; ++i) round.previous.push_back(random.Below(head.vocab));
  round.hidden = random.Vector(int64_t{rows} * positions * head.dim);
  round.logits = random.Vector(int64_t{rows} * positions * head.vocab, 3);
  round.confidence.assign(rows * positions, NAN);
  round.state.assign(rows * std::max(head.rank, 1), 0);
  return round;
}

// All positions of the round in order, rows [begin, begin + count) of it alone.
Round Evaluate(const KernelTable& table, const KernelContext& ctx, const Head& head, const Round& from,
               int rows, int positions, int begin, int count) {
  Round part;
  const auto take = [&](const auto& all, auto& out, int64_t width) {
    for (int k = 0; k < positions; ++k) {
      const auto at = all.begin() + (int64_t{k} * rows + begin) * width;
      out.insert(out.end(), at, at + count * width);
    }
  };
  take(from.previous, part.previous, 1);
  take(from.hidden, part.hidden, head.dim);
  take(from.logits, part.logits, head.vocab);
  take(from.confidence, part.confidence, 1);
  part.state.assign(count * std::max(head.rank, 1), 0);
  for (int k = 0; k < positions; ++k) {
    table.sequential_head(ctx, {.rows = count,
                                .dim = head.dim,
                                .weights = &head.weights,
                                .previous = &part.previous[k * count],
                                .hidden = &part.hidden[int64_t{k} * count * head.dim],
                                .state = part.state.data(),
                                .logits = &part.logits[int64_t{k} * count * head.vocab],
                                .confidence = &part.confidence[k * count]});
  }
  EXPECT_EQ(ctx.scratch->used(), 0u);
  return part;
}

double Sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// The equations, one row at a time.
Round Direct(const Head& head, const Round& from, int rows, int positions) {
  Round out = from;
  const SequentialHeadWeights& w = head.weights;
  for (int r = 0; r < rows; ++r) {
    std::vector<double> state(head.rank, 0);
    for (int k = 0; k < positions; ++k) {
      const int64_t at = int64_t{k} * rows + r;
      std::vector<double> h(&from.hidden[at * head.dim], &from.hidden[at * head.dim] + head.dim);
      std::vector<double> e;
      for (int i = 0; i < head.rank; ++i) e.push_back(head.w1.At(from.previous[at], i));
      const auto join = [](std::initializer_list<const std::vector<double>*> parts) {
        std::vector<double> z;
        for (const auto* part : parts) z.insert(z.end(), part->begin(), part->end());
        return z;
      };
      const auto dot = [](const Matrix& m, int64_t row, const std::vector<double>& z) {
        double sum = 0;
        for (size_t i = 0; i < z.size(); ++i) sum += m.At(row, static_cast<int64_t>(i)) * z[i];
        return sum;
      };
      if (w.confidence) {
        out.confidence[at] = static_cast<float>(dot(head.confidence, 0, join({&h, &e})));
      }
      std::vector<double> x = e;
      for (int i = 0; w.type == MarkovHeadType::kGated && i < head.rank; ++i) {
        x[i] = Sigmoid(dot(head.proj, i, join({&h, &e})) + head.bias.At(0, i)) * e[i];
      }
      if (w.type == MarkovHeadType::kRnn) {
        const std::vector<double> z = join({&state, &e, &h});
        for (int i = 0; i < head.rank; ++i) {
          const auto part = [&](int j) {
            return dot(head.proj, j * head.rank + i, z) + head.bias.At(0, j * head.rank + i);
          };
          state[i] = Sigmoid(part(0)) * state[i] + (1 - Sigmoid(part(0))) * std::tanh(part(1));
          x[i] = std::tanh(part(2));
        }
      }
      for (int v = 0; head.rank > 0 && v < head.vocab; ++v) {
        out.logits[at * head.vocab + v] += static_cast<float>(dot(head.w2, v, x));
      }
    }
  }
  return out;
}

std::vector<Head> Heads() {
  std::vector<Head> heads;
  heads.emplace_back(MarkovHeadType::kVanilla, 70, 64, 16, true, 1);
  heads.emplace_back(MarkovHeadType::kVanilla, 1030, 96, 256, true, 2);
  heads.emplace_back(MarkovHeadType::kVanilla, 257, 64, 40, false, 3);  // half a vector behind whole ones
  heads.emplace_back(MarkovHeadType::kGated, 131, 64, 20, true, 4);
  heads.emplace_back(MarkovHeadType::kGated, 300, 128, 64, false, 5);
  heads.emplace_back(MarkovHeadType::kRnn, 131, 64, 20, true, 6);
  heads.emplace_back(MarkovHeadType::kRnn, 300, 128, 64, true, 7);
  heads.emplace_back(MarkovHeadType::kVanilla, 50, 64, 0, true, 8);  // confidence alone
  return heads;
}

TEST(SequentialHead, FollowsTheEquations) {
  KernelHost host(2);
  constexpr int kRows = 6;
  constexpr int kPositions = 4;
  for (const Head& head : Heads()) {
    const Round round = MakeRound(head, kRows, kPositions, 11);
    const Round want = Direct(head, round, kRows, kPositions);
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      const KernelContext ctx = host.context(numerics);
      std::vector<std::pair<const KernelTable*, double>> tables = {{&RefKernels(), 1e-6}};
      for (const KernelTable* table : CpuTables()) tables.emplace_back(table, tolerances::kSplitBf16);
      for (const auto& [table, tolerance] : tables) {
        const Round got = Evaluate(*table, ctx, head, round, kRows, kPositions, 0, kRows);
        EXPECT_LE(RelativeL2(got.logits, want.logits), tolerance) << table->name << " rank " << head.rank;
        if (!head.weights.confidence) continue;
        EXPECT_LE(RelativeL2(got.confidence, want.confidence), tolerance)
            << table->name << " rank " << head.rank;
      }
    }
  }
}

TEST(SequentialHead, LeavesAloneWhatItHasNoWeightsFor) {
  KernelHost host(1);
  const Head bare(MarkovHeadType::kVanilla, 50, 64, 0, false, 9);
  const Round round = MakeRound(bare, 2, 1, 12);
  std::vector<const KernelTable*> tables = CpuTables();
  tables.push_back(&RefKernels());
  for (const KernelTable* table : tables) {
    const Round got = Evaluate(*table, host.context(Numerics::kClean), bare, round, 2, 1, 0, 2);
    EXPECT_EQ(got.logits, round.logits);
    EXPECT_TRUE(std::isnan(got.confidence[0]));
  }
}

TEST(SequentialHead, GivesConfidencesOfAllPositionsAtOnceAndCanLeaveThemOut) {
  constexpr int kRows = 3;
  constexpr int kPositions = 4;
  KernelHost host(2);
  std::vector<const KernelTable*> tables = CpuTables();
  tables.push_back(&RefKernels());
  for (const Head& head : Heads()) {
    const Round round = MakeRound(head, kRows, kPositions, 14);
    for (const KernelTable* table : tables) {
      const KernelContext ctx = host.context(Numerics::kFaithful);
      const Round want = Evaluate(*table, ctx, head, round, kRows, kPositions, 0, kRows);
      Round got = round;
      for (int k = 0; k < kPositions; ++k) {
        table->sequential_head(ctx, {.rows = kRows,
                                     .dim = head.dim,
                                     .weights = &head.weights,
                                     .previous = &round.previous[k * kRows],
                                     .hidden = &round.hidden[int64_t{k} * kRows * head.dim],
                                     .state = got.state.data(),
                                     .logits = &got.logits[int64_t{k} * kRows * head.vocab]});
      }
      EXPECT_EQ(got.logits, want.logits) << table->name;
      EXPECT_EQ(got.state, want.state) << table->name;
      table->sequential_head(ctx, {.rows = kRows * kPositions,
                                   .dim = head.dim,
                                   .weights = &head.weights,
                                   .previous = round.previous.data(),
                                   .hidden = round.hidden.data(),
                                   .confidence = got.confidence.data()});
      if (!head.weights.confidence) continue;
      EXPECT_EQ(got.confidence, want.confidence) << table->name;
    }
  }
}

TEST(SequentialHead, IsTheSameToTheBitInAnyCompanyAndOnAnyThreads) {
  constexpr int kRows = 11;
  constexpr int kPositions = 3;
  KernelHost one(1);
  for (const Head& head : Heads()) {
    const Round round = MakeRound(head, kRows, kPositions, 13);
    for (const KernelTable* table : CpuTables()) {
      KernelHost three(3);
      const Round all =
          Evaluate(*table, three.context(Numerics::kFaithful), head, round, kRows, kPositions, 0, kRows);
      for (int r = 0; r < kRows; ++r) {
        const Round alone =
            Evaluate(*table, one.context(Numerics::kFaithful), head, round, kRows, kPositions, r, 1);
        for (int k = 0; k < kPositions; ++k) {
          const int64_t at = int64_t{k} * kRows + r;
          EXPECT_EQ(std::memcmp(&alone.logits[int64_t{k} * head.vocab], &all.logits[at * head.vocab],
                                head.vocab * sizeof(float)),
                    0)
              << table->name << " rank " << head.rank << " row " << r << " position " << k;
          EXPECT_EQ(std::memcmp(&alone.confidence[k], &all.confidence[at], sizeof(float)), 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace foresight::sequential_head_test
