#include "base/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <chrono>

#include "base/check.h"

namespace foresight {
namespace {

// Longer than the serial gap between two kernels of a step, shorter than anyone would call busy waiting.
constexpr auto kSpin = std::chrono::microseconds(100);

template <typename Done>
bool SpinUntil(Done&& done) {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      _mm_pause();
    }
    if (std::chrono::steady_clock::now() - start > kSpin) return false;
  }
}

void EndWorkers(std::atomic<bool>& stop, std::atomic<uint32_t>& job) {
  stop.store(true);
  job.fetch_add(1);
  job.notify_all();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  CHECK(num_threads >= 1, "want at least one thread, got {}", num_threads);
  workers_.reserve(num_threads - 1);
  try {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { Work(i); });
  } catch (...) {  // the system has no more threads; those that there are would be waited for without end
    EndWorkers(stop_, job_);
    throw;
  }
}

ThreadPool::~ThreadPool() {
  EndWorkers(stop_, job_);
}

void ThreadPool::Run(int64_t count, Call call, void* body) {
  call_ = call;
  body_ = body;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  job_.fetch_add(1);
  job_.notify_all();
  Drain(0);
  job_.fetch_add(1);
  if (!SpinUntil([this] { return inside_.load() == 0; })) {
    for (int left = inside_.load(); left != 0; left = inside_.load()) inside_.wait(left);
  }
}

void ThreadPool::Drain(int thread) {
  for (int64_t i = next_.fetch_add(1, std::memory_order_relaxed); i < count_;
       i = next_.fetch_add(1, std::memory_order_relaxed)) {
    call_(body_, i, thread);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  uint32_t job = 0;
  const auto is_new = [&] {
    job = job_.load();
    return job % 2 != 0 && job != seen;
  };
  for (;;) {
    while (!SpinUntil(is_new)) job_.wait(job);
    if (stop_.load()) return;
    inside_.fetch_add(1);
    job = job_.load();
    if (job % 2 != 0) {
      Drain(thread);
      seen = job;
    }
    if (inside_.fetch_sub(1) == 1) inside_.notify_one();
  }
}

int NumProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
}

}  // namespace foresight
