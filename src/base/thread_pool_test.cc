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

}  // namespace
}  // namespace foresight
