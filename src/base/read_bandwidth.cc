#include "base/read_bandwidth.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

namespace foresight {
namespace {

constexpr size_t kPieceBytes = size_t{256} << 10;

// Independent sums, so that the loads and not the additions decide.
uint64_t Sum(std::span<const std::byte> bytes) {
  std::array<uint64_t, 32> sums = {};
  size_t i = 0;
  for (; i + sizeof(sums) <= bytes.size(); i += sizeof(sums)) {
    std::array<uint64_t, 32> words;
    std::memcpy(&words, &bytes[i], sizeof(words));
    for (size_t j = 0; j < sums.size(); ++j) sums[j] += words[j];
  }
  uint64_t sum = 0;
  for (uint64_t s : sums) sum += s;
  return sum;
}

}  // namespace

std::vector<double> MeasureReadBandwidth(ThreadPool& pool, std::span<const std::span<const std::byte>> bytes,
                                         int runs) {
  std::vector<std::span<const std::byte>> pieces;
  size_t total = 0;
  for (std::span<const std::byte> range : bytes) {
    total += range.size();
    for (size_t at = 0; at < range.size(); at += kPieceBytes) {
      pieces.push_back(range.subspan(at, std::min(kPieceBytes, range.size() - at)));
    }
  }
  std::atomic<uint64_t> sum = 0;  // keeps the reads
  std::vector<double> gb_per_second;
  for (int run = -1; run < runs; ++run) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    pool.ParallelFor(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) { sum += Sum(pieces[i]); });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (run >= 0) gb_per_second.push_back(static_cast<double>(total) * 1e-9 / seconds);
  }
  std::sort(gb_per_second.begin(), gb_per_second.end());
  return gb_per_second;
}

}  // namespace foresight
