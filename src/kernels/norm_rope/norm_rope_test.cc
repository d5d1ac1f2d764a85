#include "kernels/norm_rope/norm_rope.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"
#include "kernels/weight_fixture.h"
#include "tests/tolerances.h"

namespace foresight::norm_rope_test {
namespace {

using tolerances::kBf16Flips;
using tolerances::kFloat32;

VectorView F32View(const std::vector<float>& x) {
  return {DType::kF32, static_cast<int64_t>(x.size()), reinterpret_cast<const std::byte*>(x.data())};
}

double Tolerance(const KernelContext& ctx) {
  return ctx.faithful() ? kBf16Flips : kFloat32;
}

void ExpectRmsNorm(const KernelTable& table, const KernelContext& ctx, const KernelContext& host) {
  RandomFloats random(1);
  for (int dim : {32, 96, 128, 512, 1056}) {
    for (int rows : {1, 5, 70}) {
      const std::vector<float> x = random.Vector(int64_t{rows} * dim, 3);
      const std::vector<float> weight = random.Vector(dim);
      std::vector<bf16> half(dim);
      for (int i = 0; i < dim; ++i) half[i] = FloatToBf16(weight[i]);
      for (const VectorView& w :
           {F32View(weight),
            VectorView{DType::kBF16, dim, reinterpret_cast<const std::byte*>(half.data())}}) {
        RmsNormArgs args{.rows = rows, .dim = dim, .x = x.data(), .weight = w, .eps = 1e-6f};
        std::vector<float> want(x.size());
        args.out = want.data();
        RmsNormRef(host, args);
        std::vector<float> got = x;  // in place is allowed
        args.x = args.out = got.data();
        table.rms_norm(ctx, args);
        EXPECT_LE(RelativeL2(got, want), Tolerance(ctx)) << table.name << " dim " << dim << " rows " << rows;
      }
    }
  }
}

void ExpectRopeTable(const KernelTable& table, const KernelContext& ctx, const KernelContext& host) {
  const std::vector<int64_t> positions = {0, 1, 127, 65535, 1048575};
  const std::vector<float> frequencies = {1.f, 0.68765602f, 3.6355386e-3f, 5.680529e-7f};
  const std::vector<float> others = {0.5f, 0.25f, 1e-3f, 3e-7f};
  const size_t count = positions.size() * frequencies.size();
  for (size_t num_tables : {1, 2}) {
    std::vector<float> angles(4 * count), want(angles.size());
    const auto fill = [&](std::vector<float>& to, const auto& kernel, const KernelContext& with) {
      const auto part = [&](size_t i) { return to.data() + i * count; };
      const AngleTable tables[] = {{frequencies.data(), part(0), part(1)}, {others.data(), part(2), part(3)}};
      kernel(with, {.rows = static_cast<int>(positions.size()),
                    .pairs = static_cast<int>(frequencies.size()),
                    .positions = positions.data(),
                    .tables = std::span(tables).first(num_tables)});
    };
    fill(want, RopeTableRef, host);
    fill(angles, table.rope_table, ctx);
    EXPECT_EQ(angles, want) << table.name;
    EXPECT_EQ(want[2 * count] != 0, num_tables == 2);
  }
}

void ExpectKey(const KernelTable& table, const KernelContext& ctx, const KernelContext& host) {
  RandomFloats random(3);
  const CacheFormat format = ctx.faithful() ? CacheFormat::kPacked : CacheFormat::kFloat32;
  for (int dim : {128, 512}) {
    const EntryLayout layout{format, dim, 64};
    const int rows = 37;
    const std::vector<float> kv = random.Vector(rows * dim, 2);
    const std::vector<float> norm = random.Vector(dim);
    const std::vector<float> cos = random.Vector(rows * 32);
    const std::vector<float> sin = random.Vector(rows * 32);
    std::vector<std::byte> want(rows * layout.bytes()), got(want.size());
    KeyArgs args{.rows = rows,
                 .layout = layout,
                 .kv = kv.data(),
                 .norm = F32View(norm),
                 .eps = 1e-6f,
                 .cos = cos.data(),
                 .sin = sin.data()};
    args.entries = want.data();
    KeyRef(host, args);
    args.entries = got.data();
    table.attention_inputs(ctx, {.keys = {&args, 1}});
    std::vector<float> want_values(rows * dim), got_values(rows * dim);
    for (int t = 0; t < rows; ++t) {
      DecodeEntry(layout, want.data() + t * layout.bytes(), want_values.data() + t * dim);
      DecodeEntry(layout, got.data() + t * layout.bytes(), got_values.data() + t * dim);
    }
    // A value that rounds to the other bf16 may round to the other E4M3: 2^-3 off.
    EXPECT_LE(RelativeL2(got_values, want_values), ctx.faithful() ? 5 * kBf16Flips : kFloat32)
        << table.name << " dim " << dim;
  }
}

// The encoder is exact: with a norm and a rotation that change nothing, bytes equal the definition's.
void ExpectExactEncoding(const KernelTable& table, const KernelContext& ctx, const KernelContext& host) {
  RandomFloats random(4);
  const EntryLayout layout{CacheFormat::kPacked, 192, 64};
  const std::vector<float> ones(192, 1.f);
  const std::vector<float> cos(32, 1.f);
  const std::vector<float> sin(32, 0.f);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> kv(192);
    // Magnitudes from far below the smallest step to the largest, powers of two and midpoints among them.
    for (float& v : kv) {
      v = std::ldexp(static_cast<float>(random.Below(64) - 32) / 8, -random.Below(round % 2 == 0 ? 8 : 30));
    }
    kv[random.Below(64)] = 448.f;
    // eps so chosen that the norm's factor is a power of two: 1 / sqrt(mean + eps) = 2^-5.
    double squares = 0;
    for (float v : kv) squares += static_cast<double>(v) * v;
    const float eps = static_cast<float>(1048576.0 - squares / 192);
    std::vector<std::byte> got(layout.bytes()), want(layout.bytes());
    KeyArgs args{.rows = 1,
                 .layout = layout,
                 .kv = kv.data(),
                 .norm = F32View(ones),
                 .eps = eps,
                 .cos = cos.data(),
                 .sin = sin.data()};
    args.entries = got.data();
    table.attention_inputs(ctx, {.keys = {&args, 1}});
    args.entries = want.data();
    KeyRef(host, args);
    EXPECT_EQ(got, want) << table.name << " round " << round;
  }
}

// Also a NaN whose bits leave no room for rounding: rows of padding hold anything.
void ExpectNansKept(const KernelTable& table, const KernelContext& ctx, const KernelContext&) {
  const EntryLayout layout{CacheFormat::kPacked, 192, 64};
  const std::vector<float> ones(192, 1.f);
  const std::vector<float> cos(32, 1.f);
  const std::vector<float> sin(32, 0.f);
  for (uint32_t bits : {0x7fc00000u, 0x7fffffffu, 0xffffffffu}) {
    const std::vector<float> kv(192, std::bit_cast<float>(bits));
    std::vector<std::byte> entry(layout.bytes());
    const KeyArgs args{.rows = 1,
                       .layout = layout,
                       .kv = kv.data(),
                       .norm = F32View(ones),
                       .eps = 1e-6f,
                       .cos = cos.data(),
                       .sin = sin.data(),
                       .entries = entry.data()};
    table.attention_inputs(ctx, {.keys = {&args, 1}});
    std::vector<float> values(192);
    DecodeEntry(layout, entry.data(), values.data());
    for (float v : values) EXPECT_TRUE(std::isnan(v)) << table.name << " " << v;
  }
}

void ExpectLastRowsKept(const KernelTable& table, const KernelContext& ctx, const KernelContext&) {
  const EntryLayout layout{CacheFormat::kFloat32, 128, 64};
  constexpr int kRows = 13;
  for (int layers : {1, 3}) {
    std::vector<float> entries(int64_t{layers} * kRows * 128);
    for (int t = 0; t < layers * kRows; ++t) {
      std::fill_n(entries.begin() + t * 128, 128, static_cast<float>(t));
    }
    std::vector<FakeCache> caches;
    std::vector<SequenceRows> sequences;
    for (int layer = 0; layer < layers; ++layer) {
      for (const auto& [first, rows, position] : {std::tuple(0, 11, 5), std::tuple(11, 2, 7)}) {
        caches.push_back(FakeCache({.entry = layout, .window_slots = 8}));
        sequences.push_back({first, rows, position, caches.back().view()});
      }
    }
    table.store_keys(ctx, {.layers = layers,
                           .rows = kRows,
                           .sequences = sequences,
                           .entries = reinterpret_cast<const std::byte*>(entries.data())});
    for (int layer = 0; layer < layers; ++layer) {
      const auto value = [&](int sequence, int position) {
        return *reinterpret_cast<const float*>(caches[2 * layer + sequence].view().window[position]);
      };
      const float first = static_cast<float>(layer * kRows);
      for (int p = 8; p < 16; ++p) EXPECT_EQ(value(0, p), first + p - 5) << table.name;  // rows 3..10
      EXPECT_EQ(value(1, 7), first + 11) << table.name;
      EXPECT_EQ(value(1, 8), first + 12) << table.name;
      EXPECT_TRUE(std::isnan(value(1, 9))) << table.name;
    }
  }
}

using Check = void (*)(const KernelTable& table, const KernelContext& ctx, const KernelContext& host);

class NormRope : public testing::TestWithParam<Numerics> {
 protected:
  void Run(Check check) {
    KernelHost host(2);
    const KernelContext ctx = host.context(GetParam());
    for (const KernelTable* table : CpuTables()) check(*table, ctx, ctx);
  }
};

class NormRopeCuda : public OnDevice<testing::TestWithParam<Numerics>> {
 protected:
  void Run(Check check) {
    KernelHost host(2);
    check(CudaKernelsForHostArguments(), device_->context(GetParam()), host.context(GetParam()));
  }
};

TEST_P(NormRope, RmsNormFollowsTheDefinition) {
  Run(ExpectRmsNorm);
}
TEST_P(NormRope, RopeTableEqualsTheDefinitionUpToAMillion) {
  Run(ExpectRopeTable);
}
TEST_P(NormRope, KeyFollowsTheDefinition) {
  Run(ExpectKey);
}
TEST_P(NormRope, KeyEncodesEntriesToTheSameBytes) {
  Run(ExpectExactEncoding);
}
TEST_P(NormRope, KeyKeepsNans) {
  Run(ExpectNansKept);
}
TEST_P(NormRope, StoreKeysKeepsTheLastRowsOfEachSequence) {
  Run(ExpectLastRowsKept);
}

INSTANTIATE_TEST_SUITE_P(Both, NormRope, testing::Values(Numerics::kClean, Numerics::kFaithful));

TEST_P(NormRopeCuda, RmsNormFollowsTheDefinition) {
  Run(ExpectRmsNorm);
}
TEST_P(NormRopeCuda, RopeTableEqualsTheDefinitionUpToAMillion) {
  Run(ExpectRopeTable);
}
TEST_P(NormRopeCuda, KeyFollowsTheDefinition) {
  Run(ExpectKey);
}
TEST_P(NormRopeCuda, KeyEncodesEntriesToTheSameBytes) {
  Run(ExpectExactEncoding);
}
TEST_P(NormRopeCuda, StoreKeysKeepsTheLastRowsOfEachSequence) {
  Run(ExpectLastRowsKept);
}

INSTANTIATE_TEST_SUITE_P(Both, NormRopeCuda, testing::Values(Numerics::kClean, Numerics::kFaithful));

}  // namespace
}  // namespace foresight::norm_rope_test
