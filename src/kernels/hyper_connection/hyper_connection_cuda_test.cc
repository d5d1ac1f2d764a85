#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/device_fixture.h"
#include "kernels/hyper_connection/hyper_connection.h"
#include "kernels/weight_fixture.h"

namespace foresight::hyper_connection_cuda_test {
namespace {

constexpr double kFloat32 = 1e-5;
constexpr double kBf16 = 2.5e-3;

struct Shape {
  int m;
  int dim;
};
constexpr Shape kShapes[] = {{4, 256}, {2, 40}, {1, 516}, {8, 72}, {4, 2048}, {4, 4104}};

class HyperConnectionCudaTest : public OnDevice<> {
 protected:
  // Parameters of `outputs` mixing logits; small enough that no sigmoid and no softmax saturates.
  struct Parameters {
    RandomMatrix fn, base, scale, norm;

    Parameters(const Shape& shape, int outputs, std::mt19937& rng)
        : fn(DType::kF32, outputs, shape.m * shape.dim, rng),
          base(DType::kF32, 1, outputs, rng),
          scale(DType::kF32, 1, 3, rng),
          norm(DType::kBF16, 1, shape.dim, rng) {}
    template <typename Args>
    void Fill(Args& args) const {
      args.fn = fn.view;
      args.base = Vector(base);
      args.scale = Vector(scale);
      args.norm = Vector(norm);
      args.hc_eps = 1e-6f;
      args.norm_eps = 1e-6f;
    }
    static VectorView Vector(const RandomMatrix& m) {
      return {.dtype = m.view.dtype, .size = m.view.cols, .data = m.view.data};
    }
  };
  template <typename Args>
  void UploadParameters(Args& args) {
    args.fn = device_->Upload(args.fn);
    args.base = device_->Upload(args.base);
    args.scale = device_->Upload(args.scale);
    args.norm = device_->Upload(args.norm);
  }
  template <typename T>
  const T* Upload(const T* from, int64_t count) {
    return device_->Upload(std::span(from, static_cast<size_t>(count)));
  }
  static double Tolerance(Numerics numerics) { return numerics == Numerics::kFaithful ? kBf16 : kFloat32; }
  static void ExpectSameBits(const std::vector<float>& row, const std::vector<float>& batch, int64_t at) {
    EXPECT_EQ(std::memcmp(row.data(), batch.data() + at, row.size() * sizeof(float)), 0) << "at " << at;
  }

  // The taps' rings of two sequences with seven rows.
  class TapRings {
   public:
    TapRings(KernelDevice& device, const Shape& shape, bool faithful)
        : device_(device), item_bytes_(int64_t{3} * shape.dim * (faithful ? 2 : 4)), offset_(shape.dim) {
      for (SequenceRows& sequence : sequences_) {
        sequence.cache.window = {device.Upload(std::vector<std::byte>(kSlots * item_bytes_)), item_bytes_,
                                 kSlots};
      }
      uploaded_ = device.Upload(sequences_);
    }
    TapTarget target() const { return {{uploaded_, sequences_.size()}, offset_}; }
    void Store(const KernelTable& table, const KernelContext& ctx, const Shape& shape,
               const float* streams) const {
      table.store_tap(ctx, {target().sequences, shape.m, shape.dim, offset_, streams});
    }
    std::vector<std::byte> Download() const {
      std::vector<std::byte> rings;
      for (const SequenceRows& sequence : sequences_) {
        const auto ring = device_.Download(sequence.cache.window.data, kSlots * item_bytes_);
        rings.insert(rings.end(), ring.begin(), ring.end());
      }
      return rings;
    }

   private:
    static constexpr int64_t kSlots = 4;  // fewer than the second sequence has rows

    KernelDevice& device_;
    int64_t item_bytes_;
    int64_t offset_;
    std::vector<SequenceRows> sequences_ = {{0, 2, 9, {}}, {2, 5, 30, {}}};
    const SequenceRows* uploaded_ = nullptr;
  };

  KernelHost host_{2};
};

TEST_F(HyperConnectionCudaTest, EmbedCopiesTheTokensRows) {
  std::mt19937 rng(1);
  for (const Shape& s : kShapes) {
    const RandomMatrix table(DType::kBF16, 11, s.dim, rng);
    std::vector<int32_t> tokens = {3, 0, 10, 3};
    const int64_t count = int64_t{4} * s.m * s.dim;
    std::vector<float> want(static_cast<size_t>(count));
    EmbedArgs args = {
        .rows = 4, .m = s.m, .tokens = tokens.data(), .embed = table.view, .streams = want.data()};
    RefKernels().embed(host_.context(Numerics::kFaithful), args);
    args.embed = device_->Upload(table.view);
    args.streams = device_->Allocate<float>(count);
    const auto embed = [&](const std::vector<int32_t>& given, const int32_t* const* placed) {
      args.tokens = args.placed_in = device_->Upload(given);
      args.placed = placed;
      table_->embed(device_->context(Numerics::kFaithful), args);
      EXPECT_EQ(device_->Download(args.tokens, 4), tokens);
      EXPECT_EQ(device_->Download(args.streams, count), want);
    };
    embed(tokens, nullptr);
    const int32_t* const there = device_->Upload(tokens);
    embed({3, 7, 10, 7},
          device_->Upload(std::vector<const int32_t*>{nullptr, there + 1, nullptr, there + 3}));
  }
}

TEST_F(HyperConnectionCudaTest, PreEqualsTheDefinitionAndIsPure) {
  std::mt19937 rng(2);
  struct Outputs {
    std::vector<float> x, post, comb, streams;
  };
  for (const Shape& s : kShapes) {
    const int64_t width = s.m * s.dim;
    const Parameters parameters(s, s.m * (2 + s.m), rng);
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      for (int rows : {1, 7, 21}) {
        const bool has_back = rows != 7;
        const bool rounded = numerics == Numerics::kFaithful;
        const std::vector<float> streams = RandomRows(rows, width, rounded, rng);
        const std::vector<float> y = RandomRows(rows, s.dim, rounded, rng);
        HyperConnectionPreArgs args;
        args.m = s.m;
        args.dim = s.dim;
        args.sinkhorn_iters = 20;
        parameters.Fill(args);
        // What is mixed back lies where this call puts its own.
        const std::vector<float> post = RandomRows(rows, s.m, false, rng);
        const std::vector<float> comb = RandomRows(rows, s.m * s.m, false, rng);
        Outputs want = {std::vector<float>(rows * s.dim), post, comb, streams};
        args.rows = rows;
        args.streams = want.streams.data();
        if (has_back) args.back = {y.data(), want.post.data(), want.comb.data()};
        args.x = want.x.data();
        args.post = want.post.data();
        args.comb = want.comb.data();
        RefKernels().hyper_connection_pre(host_.context(numerics), args);
        UploadParameters(args);
        auto run = [&](int first, int count) {
          const auto upload = [&](const std::vector<float>& values, int64_t each) {
            return device_->Upload(
                std::span(values.data() + first * each, static_cast<size_t>(count * each)));
          };
          args.rows = count;
          args.streams = upload(streams, width);
          args.x = device_->Allocate<float>(count * s.dim);
          args.post = upload(post, s.m);
          args.comb = upload(comb, s.m * s.m);
          if (has_back) args.back = {upload(y, s.dim), args.post, args.comb};
          table_->hyper_connection_pre(device_->context(numerics), args);
          return Outputs{device_->Download(args.x, count * s.dim), device_->Download(args.post, count * s.m),
                         device_->Download(args.comb, count * s.m * s.m),
                         device_->Download(args.streams, count * width)};
        };
        const Outputs got = run(0, rows);
        EXPECT_LE(RelativeL2(got.streams, want.streams), Tolerance(numerics)) << s.m << " " << s.dim;
        EXPECT_LE(RelativeL2(got.x, want.x), Tolerance(numerics)) << s.m << " " << s.dim;
        // A stream that is rounded to another neighbour shows in them.
        const double mixes = has_back ? Tolerance(numerics) : kFloat32;
        EXPECT_LE(RelativeL2(got.post, want.post), mixes) << s.m << " " << s.dim;
        EXPECT_LE(RelativeL2(got.comb, want.comb), mixes) << s.m << " " << s.dim;
        for (int r = 0; r < rows; r += 4) {
          const Outputs alone = run(r, 1);
          ExpectSameBits(alone.streams, got.streams, r * width);
          ExpectSameBits(alone.x, got.x, r * s.dim);
          ExpectSameBits(alone.post, got.post, r * s.m);
          ExpectSameBits(alone.comb, got.comb, r * s.m * s.m);
        }
      }
    }
    device_->Clear();
  }
}

// In one call as by kernels of their own.
TEST_F(HyperConnectionCudaTest, PreTapsWhatItHasMixedBack) {
  std::mt19937 rng(5);
  const Shape s = {4, 256};
  const int rows = 7;
  const int64_t width = s.m * s.dim;
  const Parameters parameters(s, s.m * (2 + s.m), rng);
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    const bool faithful = numerics == Numerics::kFaithful;
    const std::vector<float> streams = RandomRows(rows, width, faithful, rng);
    const std::vector<float> y = RandomRows(rows, s.dim, faithful, rng);
    const std::vector<float> post = RandomRows(rows, s.m, false, rng);
    const std::vector<float> comb = RandomRows(rows, s.m * s.m, false, rng);
    HyperConnectionPreArgs args;
    args.rows = rows;
    args.m = s.m;
    args.dim = s.dim;
    args.sinkhorn_iters = 20;
    parameters.Fill(args);
    UploadParameters(args);
    auto run = [&](bool fused) {
      const TapRings rings(*device_, s, faithful);
      args.streams = device_->Upload(streams);
      args.x = device_->Allocate<float>(rows * s.dim);
      args.post = device_->Upload(post);
      args.comb = device_->Upload(comb);
      args.back = {device_->Upload(y), args.post, args.comb};
      args.tap = fused ? rings.target() : TapTarget{};
      table_->hyper_connection_pre(device_->context(numerics), args);
      if (!fused) rings.Store(*table_, device_->context(numerics), s, args.streams);
      return rings.Download();
    };
    const std::vector<std::byte> apart = run(/*fused=*/false);
    EXPECT_NE(apart, std::vector<std::byte>(apart.size()));
    EXPECT_EQ(run(/*fused=*/true), apart);
    device_->Clear();
  }
}

TEST_F(HyperConnectionCudaTest, PostEqualsTheDefinitionAndIsPure) {
  std::mt19937 rng(3);
  const int rows = 5;
  for (const Shape& s : kShapes) {
    const int64_t width = s.m * s.dim;
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      const bool rounded = numerics == Numerics::kFaithful;
      const std::vector<float> x = RandomRows(rows, s.dim, rounded, rng);
      const std::vector<float> post = RandomRows(rows, s.m, false, rng);
      const std::vector<float> comb = RandomRows(rows, s.m * s.m, false, rng);
      const std::vector<float> streams = RandomRows(rows, width, rounded, rng);
      std::vector<float> want = streams;
      HyperConnectionPostArgs args = {.rows = rows,
                                      .m = s.m,
                                      .dim = s.dim,
                                      .back = {x.data(), post.data(), comb.data()},
                                      .streams = want.data()};
      RefKernels().hyper_connection_post(host_.context(numerics), args);
      auto run = [&](int first, int count) {
        args.rows = count;
        args.back = {Upload(x.data() + first * s.dim, count * s.dim),
                     Upload(post.data() + first * s.m, count * s.m),
                     Upload(comb.data() + first * s.m * s.m, count * s.m * s.m)};
        args.streams =
            device_->Upload(std::span(streams.data() + first * width, static_cast<size_t>(count * width)));
        table_->hyper_connection_post(device_->context(numerics), args);
        return device_->Download(args.streams, count * width);
      };
      const std::vector<float> got = run(0, rows);
      EXPECT_LE(RelativeL2(got, want), Tolerance(numerics)) << s.m << " " << s.dim;
      for (int r = 0; r < rows; ++r) ExpectSameBits(run(r, 1), got, r * width);
    }
  }
}

TEST_F(HyperConnectionCudaTest, HeadEqualsTheDefinitionAndIsPure) {
  std::mt19937 rng(4);
  const std::vector<int32_t> ids = {6, 0, 2, 2, 5};
  const int rows = static_cast<int>(ids.size());
  for (const Shape& s : kShapes) {
    const int64_t width = s.m * s.dim;
    const Parameters parameters(s, s.m, rng);
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      std::vector<float> streams = RandomRows(7, width, numerics == Numerics::kFaithful, rng);
      std::vector<float> want(rows * s.dim), want_hidden(want.size());
      HyperHeadArgs args;
      args.rows = rows;
      args.m = s.m;
      args.dim = s.dim;
      args.streams = streams.data();
      args.row_ids = ids.data();
      parameters.Fill(args);
      args.hidden = want_hidden.data();
      args.out = want.data();
      RefKernels().hyper_head(host_.context(numerics), args);
      UploadParameters(args);
      args.streams = device_->Upload(streams);
      auto run = [&](int first, int count, std::vector<float>* hidden) {
        args.rows = count;
        args.row_ids = Upload(ids.data() + first, count);
        args.out = device_->Allocate<float>(count * s.dim);
        args.hidden = hidden != nullptr ? device_->Allocate<float>(count * s.dim) : nullptr;
        table_->hyper_head(device_->context(numerics), args);
        if (hidden != nullptr) *hidden = device_->Download(args.hidden, count * s.dim);
        return device_->Download(args.out, count * s.dim);
      };
      std::vector<float> hidden;
      const std::vector<float> got = run(0, rows, &hidden);
      EXPECT_LE(RelativeL2(got, want), Tolerance(numerics)) << s.m << " " << s.dim;
      EXPECT_LE(RelativeL2(hidden, want_hidden), Tolerance(numerics)) << s.m << " " << s.dim;
      for (int r = 0; r < rows; ++r) ExpectSameBits(run(r, 1, nullptr), got, r * s.dim);
    }
    device_->Clear();
  }
}

// In one call as by kernels of their own.
TEST_F(HyperConnectionCudaTest, HeadMixesBackAndTaps) {
  std::mt19937 rng(6);
  const std::vector<int32_t> ids = {6, 0, 3, 2, 5, 1, 4};
  const int rows = static_cast<int>(ids.size());
  struct Outputs {
    std::vector<float> out, hidden, streams;
    std::vector<std::byte> rings;
    bool operator==(const Outputs&) const = default;
  };
  for (const Shape& s : kShapes) {
    const int64_t width = s.m * s.dim;
    const Parameters parameters(s, s.m, rng);
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      const bool faithful = numerics == Numerics::kFaithful;
      const KernelContext ctx = device_->context(numerics);
      const std::vector<float> streams = RandomRows(rows, width, faithful, rng);
      const SublayerOutput back = {device_->Upload(RandomRows(rows, s.dim, faithful, rng)),
                                   device_->Upload(RandomRows(rows, s.m, false, rng)),
                                   device_->Upload(RandomRows(rows, s.m * s.m, false, rng))};
      HyperHeadArgs args;
      args.rows = rows;
      args.m = s.m;
      args.dim = s.dim;
      parameters.Fill(args);
      UploadParameters(args);
      args.row_ids = device_->Upload(ids);
      auto run = [&](bool fused) {
        const TapRings rings(*device_, s, faithful);
        args.streams = device_->Upload(streams);
        args.out = device_->Allocate<float>(rows * s.dim);
        args.hidden = device_->Allocate<float>(rows * s.dim);
        args.back = fused ? back : SublayerOutput{};
        args.tap = fused ? rings.target() : TapTarget{};
        if (!fused) {
          table_->hyper_connection_post(
              ctx, {.rows = rows, .m = s.m, .dim = s.dim, .back = back, .streams = args.streams});
          rings.Store(*table_, ctx, s, args.streams);
        }
        table_->hyper_head(ctx, args);
        return Outputs{device_->Download(args.out, rows * s.dim),
                       device_->Download(args.hidden, rows * s.dim),
                       device_->Download(args.streams, rows * width), rings.Download()};
      };
      const Outputs apart = run(/*fused=*/false);
      EXPECT_NE(apart.streams, streams);
      EXPECT_TRUE(run(/*fused=*/true) == apart) << s.m << " " << s.dim;
    }
    device_->Clear();
  }
}

}  // namespace
}  // namespace foresight::hyper_connection_cuda_test
