// Attention of a draft block: every row of it sees the window before the block and all of the block.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"
#include "kernels/norm_rope/rotate.h"
#include "kernels/weight_fixture.h"
#include "tests/tolerances.h"

namespace foresight::attention_block_test {
namespace {

struct Shape {
  Numerics numerics;
  int heads;
  int dim;
  int window;

  EntryLayout layout() const {
    return {numerics == Numerics::kFaithful ? CacheFormat::kPacked : CacheFormat::kFloat32, dim, 64};
  }
};

// A block at position s, whose ring holds what it may read and NaN elsewhere.
struct Block {
  Block(const Shape& shape, int64_t s, int rows, uint32_t seed)
      : s(s), rows(rows), cache({.entry = shape.layout(), .window_slots = shape.window + 7}) {
    RandomFloats random(seed);
    const EntryLayout layout = shape.layout();
    for (int64_t p = std::max<int64_t>(0, s - shape.window); p < s; ++p) {
      EncodeEntry(layout, random.Vector(shape.dim).data(), cache.view().window[p]);
    }
    entries.resize(rows * layout.bytes());
    for (int i = 0; i < rows; ++i) {
      EncodeEntry(layout, random.Vector(shape.dim).data(), &entries[i * layout.bytes()]);
    }
    q = random.Vector(int64_t{rows} * shape.heads * shape.dim, 2);
    if (shape.numerics == Numerics::kFaithful) std::transform(q.begin(), q.end(), q.begin(), RoundBf16);
    cos = random.Vector(rows * 32);
    sin = random.Vector(rows * 32);
  }

  int64_t s;
  int rows;
  FakeCache cache;
  std::vector<std::byte> entries;
  std::vector<float> q, cos, sin;
};

std::vector<float> Sinks(const Shape& shape) {
  return RandomFloats(5).Vector(shape.heads);
}

// The blocks in one call; outputs of each.
std::vector<std::vector<float>> Attend(const KernelTable& table, const KernelContext& ctx, const Shape& shape,
                                       const std::vector<const Block*>& blocks) {
  const std::vector<float> sinks = Sinks(shape);
  std::vector<SequenceRows> sequences;
  std::vector<float> q, cos, sin;
  std::vector<std::byte> entries;
  int rows = 0;
  for (const Block* b : blocks) {
    sequences.push_back({rows, b->rows, b->s, b->cache.view()});
    rows += b->rows;
    q.insert(q.end(), b->q.begin(), b->q.end());
    cos.insert(cos.end(), b->cos.begin(), b->cos.end());
    sin.insert(sin.end(), b->sin.begin(), b->sin.end());
    entries.insert(entries.end(), b->entries.begin(), b->entries.end());
  }
  std::vector<float> out(q.size(), NAN);
  table.attention(ctx, {.sequences = sequences,
                        .rows = rows,
                        .heads = shape.heads,
                        .window = shape.window,
                        .layout = shape.layout(),
                        .raw = RawKeys::kBlock,
                        .q = q.data(),
                        .query_eps = 1e-6f,
                        .entries = entries.data(),
                        .sink = {DType::kF32, shape.heads, reinterpret_cast<const std::byte*>(sinks.data())},
                        .cos = cos.data(),
                        .sin = sin.data(),
                        .out = out.data()});
  std::vector<std::vector<float>> outs;
  auto from = out.begin();
  for (const Block* b : blocks) {
    outs.emplace_back(from, from + static_cast<int64_t>(b->q.size()));
    from += static_cast<int64_t>(b->q.size());
  }
  return outs;
}

// dspark.md 1.4 word for word, in float64.
std::vector<float> Direct(const Shape& shape, const Block& b) {
  const std::vector<float> sinks = Sinks(shape);
  const int d = shape.dim;
  std::vector<std::vector<float>> keys;
  for (int64_t p = std::max<int64_t>(0, b.s - shape.window); p < b.s; ++p) {
    keys.emplace_back(d);
    DecodeEntry(shape.layout(), b.cache.view().window[p], keys.back().data());
  }
  for (int i = 0; i < b.rows; ++i) {
    keys.emplace_back(d);
    DecodeEntry(shape.layout(), &b.entries[i * shape.layout().bytes()], keys.back().data());
  }
  KernelHost host(1);
  std::vector<float> queries = b.q;
  QueryRef(host.context(shape.numerics), {.rows = b.rows,
                                          .heads = shape.heads,
                                          .dim = d,
                                          .rope_dim = 64,
                                          .eps = 1e-6f,
                                          .cos = b.cos.data(),
                                          .sin = b.sin.data(),
                                          .q = queries.data()});
  std::vector<float> out(b.q.size());
  for (int64_t i = 0; i < int64_t{b.rows} * shape.heads; ++i) {
    const float* q = &queries[i * d];
    const double sink = sinks[i % shape.heads];
    std::vector<double> weight;
    double sum = std::exp(sink);
    for (const std::vector<float>& key : keys) {
      double dot = 0;
      for (int c = 0; c < d; ++c) dot += static_cast<double>(q[c]) * key[c];
      weight.push_back(std::exp(dot / std::sqrt(d)));
      sum += weight.back();
    }
    for (int c = 0; c < d; ++c) {
      double value = 0;
      for (size_t k = 0; k < keys.size(); ++k) value += weight[k] * keys[k][c];
      out[i * d + c] = static_cast<float>(value / sum);
    }
    const int64_t row = i / shape.heads;
    RotateBack(&out[i * d + d - 64], 32, &b.cos[row * 32], &b.sin[row * 32]);
  }
  return out;
}

std::vector<Shape> Shapes() {
  return {{Numerics::kClean, 2, 128, 32},
          {Numerics::kFaithful, 3, 128, 20},
          {Numerics::kClean, 17, 512, 24},
          {Numerics::kFaithful, 64, 512, 128}};
}

TEST(AttentionBlock, SeesTheWindowBeforeItAndAllOfItself) {
  KernelHost host(2);
  for (const Shape& shape : Shapes()) {
    const KernelContext ctx = host.context(shape.numerics);
    const bool faithful = shape.numerics == Numerics::kFaithful;
    for (int64_t s : {0, 1, 19, 20, 24, 32, 33, 300}) {
      for (int rows : {1, 5, 8}) {
        const Block block(shape, s, rows, static_cast<uint32_t>(s * 10 + rows));
        const std::vector<float> want = Attend(RefKernels(), ctx, shape, {&block})[0];
        // Faithful probabilities and outputs are rounded to bf16, 2^-9 of each at most.
        EXPECT_LE(RelativeL2(want, Direct(shape, block)), faithful ? 5e-3 : 1e-6) << "s " << s;
        for (const KernelTable* table : CpuTables()) {
          EXPECT_LE(RelativeL2(Attend(*table, ctx, shape, {&block})[0], want),
                    faithful ? 2 * tolerances::kBf16Flips : tolerances::kFloat32)
              << table->name << " s " << s << " rows " << rows;
        }
      }
    }
  }
}

TEST(AttentionBlock, IsTheSameToTheBitInAnyCompanyAndOnAnyThreads) {
  for (const Shape& shape : Shapes()) {
    const Block a(shape, 211, 5, 1);
    const Block b(shape, 3, 8, 2);
    const Block c(shape, 40, 1, 3);
    for (const KernelTable* table : CpuTables()) {
      KernelHost one(1);
      const KernelContext alone = one.context(shape.numerics);
      std::vector<std::vector<float>> want;
      for (const Block* block : {&a, &b, &c}) want.push_back(Attend(*table, alone, shape, {block})[0]);
      for (int threads : {1, 2, 3}) {
        KernelHost host(threads);
        EXPECT_EQ(Attend(*table, host.context(shape.numerics), shape, {&a, &b, &c}), want)
            << table->name << ", " << threads << " threads";
      }
    }
  }
}

using AttentionBlockCuda = OnDevice<>;

TEST_F(AttentionBlockCuda, SeesTheWindowBeforeItAndAllOfItself) {
  KernelHost host(2);
  for (const Shape& shape : Shapes()) {
    for (int64_t s : {0, 1, 19, 20, 24, 32, 33, 300}) {
      for (int rows : {1, 5, 8}) {
        const Block block(shape, s, rows, static_cast<uint32_t>(s * 10 + rows));
        const auto want = Attend(RefKernels(), host.context(shape.numerics), shape, {&block});
        const auto got =
            Attend(CudaKernelsForHostArguments(), device_->context(shape.numerics), shape, {&block});
        EXPECT_LE(RelativeL2(got[0], want[0]), shape.numerics == Numerics::kFaithful
                                                   ? tolerances::kBf16Probabilities
                                                   : tolerances::kSplitBf16)
            << "s " << s << " rows " << rows;
      }
    }
  }
}

// A window and a block that end within tiles, once: what racecheck can follow.
TEST_F(AttentionBlockCuda, SeesALittleWindowAndItself) {
  KernelHost host(2);
  for (const Shape& shape : {Shapes()[1], Shapes()[3]}) {
    const Block block(shape, 19, 5, 1);
    const auto want = Attend(RefKernels(), host.context(shape.numerics), shape, {&block});
    const auto got = Attend(CudaKernelsForHostArguments(), device_->context(shape.numerics), shape, {&block});
    EXPECT_LE(RelativeL2(got[0], want[0]), tolerances::kBf16Probabilities);
  }
}

TEST_F(AttentionBlockCuda, IsTheSameToTheBitInAnyCompany) {
  for (const Shape& shape : Shapes()) {
    const KernelContext ctx = device_->context(shape.numerics);
    const Block a(shape, 211, 5, 1);
    const Block b(shape, 3, 8, 2);
    const Block c(shape, 40, 1, 3);
    std::vector<std::vector<float>> want;
    for (const Block* block : {&a, &b, &c}) {
      want.push_back(Attend(CudaKernelsForHostArguments(), ctx, shape, {block})[0]);
    }
    EXPECT_EQ(Attend(CudaKernelsForHostArguments(), ctx, shape, {&a, &b, &c}), want);
  }
}

}  // namespace
}  // namespace foresight::attention_block_test
