// Device::Fork and Join order kernels that may start before their predecessors end.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/device_fixture.h"
#include "kernels/weight_fixture.h"

namespace foresight::fork_test {
namespace {

constexpr int kRows = 8;
constexpr int kDim = 512;
constexpr int64_t kValues = kRows * kDim;

class ForkTest : public OnDevice<> {
 protected:
  // Each of a chain's links reads what the one before has written.
  void RunChain(const float* x, float* links, int count) {
    for (int i = 0; i < count; ++i) {
      float* const out = links + i * kValues;
      Multiply(kRows, x, out);
      table_->rms_norm(ctx_,
                       {.rows = kRows, .dim = kDim, .x = out, .weight = norm_, .eps = 1e-6f, .out = out});
      x = out;
    }
  }
  void Multiply(int rows, const float* x, float* out) {
    const LinearTarget target[] = {{.w = w_, .out = out, .numerics = LinearNumerics::kFloat32}};
    table_->linear(ctx_, {.rows = rows, .x = x, .targets = target});
  }

  KernelContext ctx_;
  MatrixView w_;
  VectorView norm_;
};

// In rounds with other inputs each, of which the first ones are launched, one is recorded, and the last ones
// are replayed.
TEST_F(ForkTest, BranchesSeeWhatWasBeforeAndAreSeenBehindTheJoin) {
  std::mt19937 rng(1);
  ctx_ = device_->context(Numerics::kFaithful);
  const RandomMatrix w(DType::kBF16, kDim, kDim, rng);
  const RandomMatrix norm(DType::kBF16, 1, kDim, rng);
  w_ = device_->Upload(w.view);
  norm_ = device_->Upload(VectorView{.dtype = DType::kBF16, .size = kDim, .data = norm.view.data});
  Device& device = device_->device();
  const uint64_t scope = device.NewReplayScope() << 1;
  constexpr int kRounds = 20;
  constexpr int kLong = 12;
  for (const bool branch_is_longer : {true, false}) {
    const int branch_links = branch_is_longer ? kLong : 1;
    const int main_links = branch_is_longer ? 1 : kLong;
    const int64_t unrecorded_runs = device.unrecorded_runs();
    float* const x = device_->Allocate<float>(kValues);
    const std::vector<float> nothing((1 + 2 * kLong + 4) * kValues, NAN);
    float* const before = device_->Upload(nothing);
    float* const chains = before + kValues;
    // What is read behind the join lies side by side: the end of one chain, the beginning of the other.
    float* const branch = chains + (kLong - branch_links) * kValues;
    float* const main = chains + kLong * kValues;
    float* const both = chains + 2 * kLong * kValues;
    const float* const ends = chains + (kLong - 1) * kValues;
    const auto run = [&](bool forks) {
      ArenaScope arena_scope(*ctx_.scratch);
      RunChain(x, before, 1);
      const auto run_branch = [&] {
        ArenaKeep keep(*ctx_.scratch);
        RunChain(before, branch, branch_links);
      };
      if (forks) {
        device.Fork(run_branch);
      } else {
        run_branch();
      }
      RunChain(before, main, main_links);
      if (forks) device.Join();
      Multiply(2 * kRows, ends, both);
      RunChain(main + (main_links - 1) * kValues, both + 2 * kValues, 1);
    };
    const auto outputs = [&](const std::vector<float>& inputs, auto launch) {
      device.Upload(x, inputs.data(), kValues * static_cast<int64_t>(sizeof(float)));
      device.Upload(before, nothing.data(), std::ssize(nothing) * static_cast<int64_t>(sizeof(float)));
      launch();
      return device_->Download(both, 3 * kValues);
    };
    for (int round = 0; round < kRounds; ++round) {
      const std::vector<float> inputs = RandomRows(kRows, kDim, true, rng);
      const std::vector<float> want = outputs(inputs, [&] { run(/*forks=*/false); });
      for (const float value : want) ASSERT_TRUE(std::isfinite(value));
      EXPECT_EQ(
          outputs(inputs,
                  [&] { device.Replay(scope | (branch_is_longer ? 1 : 0), [&] { run(/*forks=*/true); }); }),
          want)
          << (branch_is_longer ? "a longer branch, round " : "a shorter branch, round ") << round;
    }
    EXPECT_EQ(device.unrecorded_runs(), unrecorded_runs + 9);  // the last of which it records
  }
}

}  // namespace
}  // namespace foresight::fork_test
