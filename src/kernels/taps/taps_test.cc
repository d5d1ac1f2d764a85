#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/host_arguments.h"

namespace foresight::taps_test {
namespace {

constexpr int kDim = 96;
constexpr int kTaps = 2;
constexpr int64_t kSlots = 5;

// Two taps of a step of two sequences, one of them longer than the ring, then read back.
void ExpectMeansByPosition(const KernelTable& table, const KernelContext& ctx) {
  const std::vector<float> streams = RandomFloats(3).Vector(10 * 4 * kDim);
  const bool faithful = ctx.faithful();
  const int64_t row_bytes = int64_t{kTaps} * kDim * (faithful ? 2 : 4);
  std::vector<std::byte> a(kSlots * row_bytes, std::byte{0xff}), b = a;
  LayerCacheView view_a, view_b;
  view_a.window = {a.data(), row_bytes, kSlots};
  view_b.window = {b.data(), row_bytes, kSlots};
  const std::vector<SequenceRows> step = {{0, 3, 11, view_a}, {3, 7, 2, view_b}};
  for (int tap = 0; tap < kTaps; ++tap) {
    // The second tap is of other streams: of the rows in another order of dims.
    std::vector<float> of_tap = streams;
    if (tap == 1) std::reverse(of_tap.begin(), of_tap.end());
    table.store_tap(
        ctx,
        {.sequences = step, .m = 4, .dim = kDim, .offset = int64_t{tap} * kDim, .streams = of_tap.data()});
  }
  // All of the first, the last five of the second.
  const std::vector<SequenceRows> rows = {{0, 3, 11, view_a}, {3, 5, 4, view_b}};
  std::vector<float> out(8 * kTaps * kDim, NAN);
  table.load_taps(ctx, {.sequences = rows, .width = kTaps * kDim, .out = out.data()});
  for (int r = 0; r < 8; ++r) {
    const int step_row = r < 3 ? r : r + 2;
    for (int i = 0; i < kTaps * kDim; ++i) {
      double sum = 0;
      for (int j = 0; j < 4; ++j) {
        const size_t at = (step_row * 4 + j) * kDim + i % kDim;
        sum += i < kDim ? streams[at] : streams[streams.size() - 1 - at];
      }
      const double want = sum / 4;
      EXPECT_NEAR(out[r * kTaps * kDim + i], want, faithful ? std::fabs(want) * 0x1p-8 : 1e-6)
          << table.name << " row " << r << " value " << i;
    }
  }
}

TEST(Taps, AreTheMeansOfTheStreamsByPosition) {
  KernelHost host(2);
  std::vector<const KernelTable*> tables = CpuTables();
  tables.push_back(&RefKernels());
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    for (const KernelTable* table : tables) ExpectMeansByPosition(*table, host.context(numerics));
  }
}

using TapsCuda = OnDevice<>;

TEST_F(TapsCuda, AreTheMeansOfTheStreamsByPosition) {
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    ExpectMeansByPosition(CudaKernelsForHostArguments(), device_->context(numerics));
  }
}

}  // namespace
}  // namespace foresight::taps_test
