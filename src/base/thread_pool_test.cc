#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace foresight {
namespace {

TEST(ThreadPool, EveryIndexRunsExactlyOnce) {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (int count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> hits(count);
      std::atomic<bool> thread_in_range{true};
      pool.ParallelFor(count, [&](int64_t i, int thread) {
        hits[i].fetch_add(1);
        if (thread < 0 || thread >= threads) thread_in_range = false;
      });
      for (auto& h : hits) ASSERT_EQ(h.load(), 1);
      EXPECT_TRUE(thread_in_range);
    }
  }
}

TEST(ThreadPool, ManyShortJobsAndSleepingWorkers) {
  ThreadPool pool(3);
  int64_t sum = 0;
  std::vector<int64_t> values(16);
  for (int round = 0; round < 5000; ++round) {
    pool.ParallelFor(16, [&](int64_t i, int) { values[i] = i + round; });
    for (int64_t v : values) sum += v;
    // Long enough for the workers to fall asleep now and then.
    if (round % 1000 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  int64_t want = 0;
  for (int round = 0; round < 5000; ++round) want += 16 * round + 120;
  EXPECT_EQ(sum, want);
}

// Most workers come when a job is closed or the next one open.
TEST(ThreadPool, MoreThreadsThanProcessorsAndItems) {
  ThreadPool pool(4 * NumProcessors() + 1);
  std::vector<int64_t> values(3);
  for (int64_t round = 1; round <= 2000; ++round) {
    const int64_t count = 2 + round % 2;
    pool.ParallelFor(count, [&](int64_t i, int) { values[i] += round * (i + 1); });
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t odd = (round + 1) / 2;  // rounds, in which there are three items
      ASSERT_EQ(values[i], (i + 1) * (i < 2 ? round * (round + 1) / 2 : odd * odd));
    }
  }
}

}  // namespace
}  // namespace foresight
