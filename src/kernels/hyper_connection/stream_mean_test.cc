#include <gtest/gtest.h>

#include "kernels/cache_fixture.h"

namespace foresight {
namespace {

TEST(StreamMean, AveragesTheStreamsOfChosenRowsIntoTheirColumns) {
  constexpr int kDim = 96;
  constexpr int kStride = 2 * kDim;
  KernelHost host(2);
  const std::vector<float> streams = RandomFloats(3).Vector(7 * 4 * kDim);
  const std::vector<int32_t> rows = {5, 0, 6};
  std::vector<const KernelTable*> tables = CpuTables();
  tables.push_back(&RefKernels());
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    for (const KernelTable* table : tables) {
      std::vector<float> out(rows.size() * kStride, -7);
      table->stream_mean(host.context(numerics), {.rows = 3,
                                                  .m = 4,
                                                  .dim = kDim,
                                                  .streams = streams.data(),
                                                  .row_ids = rows.data(),
                                                  .out = out.data() + kDim,
                                                  .out_stride = kStride});
      for (size_t r = 0; r < rows.size(); ++r) {
        for (int c = 0; c < kDim; ++c) {
          double sum = 0;
          for (int j = 0; j < 4; ++j) sum += streams[(rows[r] * 4 + j) * kDim + c];
          const float want = static_cast<float>(sum / 4);
          const double tolerance = numerics == Numerics::kFaithful ? std::abs(want) * 0x1p-8 : 1e-6;
          EXPECT_NEAR(out[r * kStride + kDim + c], want, tolerance) << table->name;
          EXPECT_EQ(out[r * kStride + c], -7) << table->name;  // the other tap's columns
        }
      }
    }
  }
}

}  // namespace
}  // namespace foresight
