#include "base/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

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

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  CHECK(num_threads >= 1, "want at least one thread, got {}", num_threads);
  workers_.reserve(num_threads - 1);
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
}

void ThreadPool::Run(int64_t count, Call call, void* body) {
  call_ = call;
  body_ = body;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  Drain(0);
  if (!SpinUntil([this] { return busy_.load(std::memory_order_acquire) == 0; })) {
    for (int left = busy_.load(std::memory_order_acquire); left != 0;
         left = busy_.load(std::memory_order_acquire)) {
      busy_.wait(left, std::memory_order_acquire);
    }
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
  for (;;) {
    if (!SpinUntil([&] { return epoch_.load(std::memory_order_acquire) != seen; })) {
      epoch_.wait(seen, std::memory_order_acquire);
    }
    // Every worker takes part in every job before the next one can start, so no epoch is ever skipped.
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    Drain(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

int NumProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
}

}  // namespace foresight
