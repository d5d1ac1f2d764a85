// Rates of products with stored weights at the released shapes: linear_bench [threads]. Each weight is read
// from memory (the matrices are larger than any cache); the rate is stored bytes per second beside a plain
// read of the same bytes by the same threads, and multiply-adds per second.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/read_bandwidth.h"
#include "bench/kernels/device_data.h"
#include "kernels/cache_fixture.h"

namespace foresight {
namespace {

constexpr int kRuns = 7;
constexpr int64_t kBytes = int64_t{256} << 20;  // of one matrix or set of experts, about

MatrixView Make(Arena& arena, DType dtype, int64_t rows, int64_t cols) {
  MatrixView w{.dtype = dtype, .rows = rows, .cols = cols};
  const int64_t data_bytes = rows * w.row_bytes();
  std::byte* data = arena.Allocate<std::byte>(w.bytes());
  FillCodes({data, static_cast<size_t>(data_bytes)}, dtype);
  std::memset(data + data_bytes, 122, w.bytes() - data_bytes);
  w.data = data;
  w.scales = reinterpret_cast<const uint8_t*>(data + data_bytes);
  return w;
}

double PlainRead(ThreadPool& pool, std::span<const MatrixView> matrices) {
  std::vector<std::span<const std::byte>> bytes;
  for (const MatrixView& w : matrices) bytes.push_back({w.data, static_cast<size_t>(w.bytes())});
  return MeasureReadBandwidth(pool, bytes, kRuns)[kRuns / 2];
}

void Report(const std::string& what, double plain, double bytes, double flops,
            const std::function<void()>& run) {
  std::vector<double> ms;
  run();
  for (int i = 0; i < kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(ms.begin(), ms.end());
  const double median = ms[kRuns / 2];
  fmt::print(
      "{:40} {:8.2f} ms ({:.2f} .. {:.2f}) {:6.1f} GB/s, {:3.0f} % of {:.1f} GB/s read, {:6.1f} GFLOP/s\n",
      what, median, ms.front(), ms.back(), bytes / median * 1e-6, 100 * bytes / median * 1e-6 / plain, plain,
      flops / median * 1e-6);
}

void Linear(const KernelTable& table, const KernelContext& ctx, DType dtype, int64_t cols) {
  Arena arena(2 * kBytes);
  const MatrixView shape{.dtype = dtype, .rows = 1, .cols = cols};
  const MatrixView w = Make(arena, dtype, kBytes / shape.row_bytes() / 128 * 128, cols);
  const double plain = PlainRead(*ctx.pool, {&w, 1});
  for (int rows : {1, 2, 4, 6, 8, 16}) {
    const std::vector<float> x = RandomFloats(1).Vector(rows * cols);
    std::vector<float> out(rows * w.rows);
    const LinearTarget targets[] = {{.w = w, .out = out.data()}};
    Report(fmt::format("{} {} [{}, {}], {} rows", table.name, DTypeName(dtype), w.rows, cols, rows), plain,
           static_cast<double>(w.bytes()), 2.0 * rows * w.rows * cols,
           [&] { table.linear(ctx, {.rows = rows, .x = x.data(), .targets = targets}); });
  }
}

// Flash's experts, as many distinct ones as the rows would choose of 24, 6 and the shared one a row.
void Experts(const KernelTable& table, const KernelContext& ctx) {
  constexpr int kDim = 4096, kIntermediate = 2048, kExperts = 24, kPerToken = 6;
  Arena arena(2 * kBytes);
  std::vector<MatrixView> stored;
  std::vector<ExpertWeights> experts;
  for (int e = 0; e <= kExperts; ++e) {
    const DType dtype = e < kExperts ? DType::kI8 : DType::kF8E4M3;
    for (auto [rows, cols] : {std::pair{kIntermediate, kDim}, {kIntermediate, kDim}, {kDim, kIntermediate}}) {
      stored.push_back(Make(arena, dtype, rows, cols));
    }
    const size_t n = stored.size();
    experts.push_back({stored[n - 3], stored[n - 2], stored[n - 1]});
  }
  const ExpertWeights shared = experts.back();
  experts.pop_back();
  const double plain = PlainRead(*ctx.pool, stored);
  int next = 0;
  for (int rows : {1, 2, 4, 6, 8, 16}) {
    const std::vector<float> x = RandomFloats(2).Vector(rows * kDim);
    const std::vector<float> weights(rows * kPerToken, 0.25f);
    std::vector<float> out(x.size());
    std::vector<int32_t> ids(rows * kPerToken);
    const int distinct = std::min(kExperts, rows * kPerToken);
    const double bytes =
        static_cast<double>(experts[0].w1.bytes() + experts[0].w3.bytes() + experts[0].w2.bytes()) *
            distinct +
        static_cast<double>(shared.w1.bytes() + shared.w3.bytes() + shared.w2.bytes());
    Report(fmt::format("{} experts, {} of {}, {} rows", table.name, distinct, kExperts, rows), plain, bytes,
           2.0 * rows * (kPerToken + 1) * 3 * kDim * kIntermediate, [&] {
             for (int32_t& id : ids) id = next++ % kExperts;
             table.moe(ctx, {.rows = rows,
                             .dim = kDim,
                             .intermediate = kIntermediate,
                             .experts_per_token = kPerToken,
                             .swiglu_limit = 10,
                             .experts = experts,
                             .shared = shared,
                             .x = x.data(),
                             .ids = ids.data(),
                             .weights = weights.data(),
                             .out = out.data()});
           });
  }
}

void Run(int threads) {
  ThreadPool pool(threads);
  Arena arena(size_t{4} << 30);
  const KernelContext ctx{.pool = &pool, .scratch = &arena, .numerics = Numerics::kFaithful};
  fmt::print("{} threads, medians of {} runs\n", threads, kRuns);
  for (std::string_view isa : {"avx512", "avx2"}) {
    const auto table = CpuKernels(isa);
    if (!table.ok()) continue;
    Linear(**table, ctx, DType::kBF16, 4096);
    Linear(**table, ctx, DType::kF8E4M3, 4096);
    Linear(**table, ctx, DType::kF8E4M3, 1024);
    Experts(**table, ctx);
  }
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  foresight::Run(argc > 1 ? std::max(1, std::atoi(argv[1])) : foresight::NumProcessors());
  return 0;
}
