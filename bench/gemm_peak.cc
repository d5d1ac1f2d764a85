// The yardstick for prefill: what oneDNN's plain GEMM reaches on this machine, as one line of JSON.
//
//   foresight-gemm-peak THREADS
//
// C [M, N] f32 = A [M, K] bf16 x B [K, N] bf16 with M = 512, N = K = 4096, B in the layout that oneDNN likes
// best and A, B, C allocated once. A program of its own: oneDNN brings OpenMP's threads, and nothing that
// Foresight runs should share a process with them.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <dnnl.hpp>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr int64_t kM = 512;
constexpr int64_t kN = 4096;
constexpr int64_t kK = 4096;
constexpr int kWarmUps = 5;
constexpr int kRuns = 25;

// Small varied values: a GEMM of zeros could be kinder to the processor's power budget.
void Fill(dnnl::memory& memory, int64_t count) {
  auto* values = static_cast<uint16_t*>(memory.get_data_handle());
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(state >> 8) / 16777216.0f - 0.5f;
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    values[i] = static_cast<uint16_t>(bits >> 16);
  }
}

std::vector<double> MeasureGflops() {
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc a({kM, kK}, memory::data_type::bf16, memory::format_tag::ab);
  const memory::desc b({kK, kN}, memory::data_type::bf16, memory::format_tag::ab);
  const memory::desc b_any({kK, kN}, memory::data_type::bf16, memory::format_tag::any);
  const memory::desc c({kM, kN}, memory::data_type::f32, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b_any, c), engine);
  memory a_memory(a, engine);
  memory b_plain(b, engine);
  memory b_memory(description.weights_desc(), engine);
  memory c_memory(c, engine);
  Fill(a_memory, kM * kK);
  Fill(b_plain, kK * kN);
  dnnl::reorder(b_plain, b_memory).execute(stream, b_plain, b_memory);
  stream.wait();

  const dnnl::matmul matmul(description);
  std::vector<double> gflops;
  for (int run = -kWarmUps; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    matmul.execute(stream,
                   {{DNNL_ARG_SRC, a_memory}, {DNNL_ARG_WEIGHTS, b_memory}, {DNNL_ARG_DST, c_memory}});
    stream.wait();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (run >= 0) gflops.push_back(2e-9 * kM * kN * kK / elapsed.count());
  }
  std::sort(gflops.begin(), gflops.end());
  return gflops;
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 0;
  const std::string_view text = argc == 2 ? argv[1] : "";
  std::from_chars(text.data(), text.data() + text.size(), threads);
  if (threads < 1) {
    fmt::print(stderr, "usage: foresight-gemm-peak THREADS\n");
    return 1;
  }
  omp_set_num_threads(threads);
  try {
    const std::vector<double> gflops = MeasureGflops();
    fmt::print(
        R"({{"m": {}, "n": {}, "k": {}, "threads": {}, "gflops_median": {:.1f}, "gflops_min": {:.1f}, "gflops_max": {:.1f}}})"
        "\n",
        kM, kN, kK, threads, gflops[gflops.size() / 2], gflops.front(), gflops.back());
  } catch (const std::exception& e) {
    fmt::print(stderr, "foresight-gemm-peak: {}\n", e.what());
    return 70;
  }
  return 0;
}
