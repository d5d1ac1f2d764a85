// A fixed team of threads for the parallel parts of a step.
//
// The thread that calls ParallelFor takes part. Workers spin for a short while for the next job (the gap
// between two kernels of a step is microseconds), then sleep on a futex. The caller waits for workers that
// have begun, never for one that the system lets wait for a processor. A call allocates nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace foresight {

class ThreadPool {
 public:
  // num_threads >= 1, the calling thread included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, thread) for every index in [0, count), in any order, on any thread (0 <= thread <
  // num_threads), and returns when all are done. One caller at a time; not re-entrant. What an index computes
  // must not depend on the thread.
  template <typename Body>
  void ParallelFor(int64_t count, Body&& body) {
    if (count <= 0) return;
    if (count == 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    Run(
        count, [](void* b, int64_t i, int thread) { (*static_cast<Plain*>(b))(i, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Call = void (*)(void* body, int64_t index, int thread);
  void Run(int64_t count, Call call, void* body);
  void Work(int thread);
  void Drain(int thread);

  // The job; written by the caller while none is open and no worker inside.
  Call call_ = nullptr;
  void* body_ = nullptr;
  int64_t count_ = 0;
  alignas(64) std::atomic<uint32_t> job_{0};  // odd while one is open; no two have one number
  alignas(64) std::atomic<int64_t> next_{0};
  // Workers that may be at the open job. One counts itself before it looks whether the job is open, the
  // caller closes it before it looks who is inside, so that one of them sees the other.
  alignas(64) std::atomic<int> inside_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::jthread> workers_;
};

// The number of processors this process may run on (its affinity mask).
int NumProcessors();

}  // namespace foresight
