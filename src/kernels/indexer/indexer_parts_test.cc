#include "kernels/indexer/indexer_parts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/cuda/device_fixture.h"

namespace foresight::indexer_parts_test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Score i of `count`.
using Scores = std::function<float(int i, int count, std::mt19937& random)>;

float Normal(int, int, std::mt19937& random) {
  return std::normal_distribution<float>()(random);
}

const std::pair<const char*, Scores> kScores[] = {
    {"normal", Normal},
    {"all equal", [](int, int, std::mt19937&) { return -1.5f; }},
    {"few values", [](int, int, std::mt19937& r) { return static_cast<float>(r() % 5) - 2; }},
    {"mostly zeros of both signs",
     [](int, int, std::mt19937& r) { return r() % 300 == 0 ? 1.0f
                                            : r() % 2 == 0 ? 0.0f
                                                           : -0.0f; }},
    {"rising", [](int i, int, std::mt19937&) { return static_cast<float>(i); }},
    {"falling", [](int i, int, std::mt19937&) { return static_cast<float>(-i); }},
    {"nearly equal", [](int, int, std::mt19937& r) { return 1 + static_cast<float>(r() % 64) * 0x1p-23f; }},
    {"large ones side by side",
     [](int i, int count, std::mt19937& r) {
       return Normal(0, 0, r) + (i / 900 == count / 2000 ? 100.0f : 0.0f);
     }},
    {"of every size",
     [](int, int, std::mt19937& r) {
       return std::ldexp(Normal(0, 0, r), static_cast<int>(r() % 240) - 120);
     }},
    {"no numbers and infinities",
     [](int, int, std::mt19937& r) {
       const uint32_t kind = r() % 8;
       return kind == 0                     ? std::numeric_limits<float>::quiet_NaN()
              : kind == 1                   ? -kInfinity
              : kind == 2 && r() % 200 == 0 ? kInfinity
                                            : Normal(0, 0, r);
     }},
    {"minus infinity but for a few",
     [](int i, int, std::mt19937&) { return i % 1000 == 7 ? 1.0f : -kInfinity; }},
};

// The definition: larger first, of equal ones the lower index; no number is minus infinity.
std::vector<int32_t> Largest(std::vector<float> scores, int k) {
  for (float& s : scores) s = std::isnan(s) ? -kInfinity : s;
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const int count = std::min(k, static_cast<int>(scores.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  order.resize(count);
  std::sort(order.begin(), order.end());
  order.resize(k, -1);
  return order;
}

using PicksCuda = OnDevice<>;

// Rows of one length each, `rows` of them in one launch.
void ExpectLargest(KernelDevice& device, const Scores& of, int rows, int count, int topk) {
  const int64_t stride = std::bit_ceil(static_cast<uint64_t>(std::max(count, 512)));
  std::mt19937 random(count + topk);
  // What is behind a row's end must not matter: the largest there is.
  std::vector<float> scores(rows * stride, kInfinity);
  std::vector<float> maxima(scores.size() / IndexScores::kMaximumOf, kInfinity);
  std::vector<std::vector<int32_t>> want;
  for (int row = 0; row < rows; ++row) {
    std::vector<float> of_row(count);
    for (int i = 0; i < count; ++i) {
      of_row[i] = of(i, count, random);
      float& maximum = maxima[(row * stride + i) / IndexScores::kMaximumOf];
      if (i % IndexScores::kMaximumOf == 0) maximum = -kInfinity;
      maximum = std::fmax(maximum, of_row[i]);
    }
    std::copy(of_row.begin(), of_row.end(), scores.begin() + row * stride);
    want.push_back(Largest(std::move(of_row), topk));
  }
  std::vector<SequenceRows> sequences;
  for (int row = 0; row < rows; ++row) {
    sequences.push_back(
        {.first_row = row, .num_rows = 1, .first_position = count * int64_t{4} + 2, .cache = {}});
  }
  const IndexerParts parts = *CudaIndexerParts();
  int32_t* picks = device.Allocate<int32_t>(int64_t{rows} * topk);
  const SequenceRows* on_device = device.Upload(sequences);
  parts.picks(device.context(Numerics::kFaithful),
              {.sequences = {on_device, sequences.size()},
               .rows = rows,
               .entries_max = count,
               .heads = 1,
               .topk = topk,
               .key = {CacheFormat::kPacked, 128},
               .picks = picks},
              {.scores = device.Upload(scores), .maxima = device.Upload(maxima), .stride = stride});
  const std::vector<int32_t> got = device.Download(picks, int64_t{rows} * topk);
  for (int row = 0; row < rows; ++row) {
    ASSERT_TRUE(std::equal(want[row].begin(), want[row].end(), got.begin() + int64_t{row} * topk))
        << "row " << row << " of " << rows << ", " << topk << " of " << count;
  }
  device.Clear();
}

TEST_F(PicksCuda, AreTheLargestOfAnyScores) {
  for (const auto& [name, of] : kScores) {
    SCOPED_TRACE(name);
    for (int count : {513, 1000, 8192, 8193, 20001, 65536, 262143}) {
      ExpectLargest(*device_, of, 1, count, 512);
      ASSERT_FALSE(HasFatalFailure());
    }
  }
}

TEST_F(PicksCuda, AreTheLargestForAnyNumberOfThem) {
  for (int topk : {1, 8, 511, 700, 1024, 2048}) {
    for (int count : {topk - 1, topk, topk + 1, 9000, 16385, 30000, 300000}) {
      ExpectLargest(*device_, Normal, 1, count, topk);
      ASSERT_FALSE(HasFatalFailure()) << topk;
    }
  }
}

// More rows than multiprocessors.
TEST_F(PicksCuda, AreTheLargestInManyRows) {
  for (const auto& [name, of] : kScores) {
    SCOPED_TRACE(name);
    for (int count : {600, 4096, 9999, 20000}) {
      ExpectLargest(*device_, of, 300, count, 512);
      ASSERT_FALSE(HasFatalFailure());
    }
  }
}

// A row for each kernel and each kind of list: what racecheck can follow.
TEST_F(PicksCuda, AreTheLargestOfLittle) {
  for (const auto& [rows, count] : {std::pair{1, 513}, {1, 8300}, {140, 520}}) {
    ExpectLargest(*device_, Normal, rows, count, 512);
  }
}

}  // namespace
}  // namespace foresight::indexer_parts_test
