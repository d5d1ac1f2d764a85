// The next drafts of all requests, the most likely to be reached and accepted first.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"

namespace foresight {

// A heap of one candidate for each request: draft j of request r with its survival. Equal survivals (as
// float32): the lower j, then the lower r first, an order that doesn't look at tokens. Candidates with
// survival 0 are left out. Allocates in the constructor only.
class FrontierQueue {
 public:
  struct Candidate {
    int r = 0;
    int j = 0;
    double survival = 0;
  };

  explicit FrontierQueue(int requests_max) { keys_.reserve(requests_max); }

  void Clear() { keys_.clear(); }
  // Before the first look at the top, Order() must be called.
  void Add(const Candidate& candidate) {
    if (Positive(candidate.survival)) keys_.push_back(KeyOf(candidate));
  }
  void Order() {
    for (size_t i = keys_.size() / 2; i-- > 0;) Sink(i, keys_[i]);
  }
  void Copy(const FrontierQueue& other) { keys_.assign(other.keys_.begin(), other.keys_.end()); }

  bool empty() const { return keys_.empty(); }
  Candidate top() const {
    const uint64_t key = keys_[0];
    return {.r = static_cast<int>(kRequestMask - (key & kRequestMask)),
            .j = static_cast<int>(kDraftMask - (key >> kRequestBits & kDraftMask)),
            .survival = std::bit_cast<float>(static_cast<uint32_t>(key >> 32))};
  }
  // The top's request has another candidate now; survival 0: none.
  void ReplaceTop(const Candidate& candidate) {
    uint64_t key;
    if (Positive(candidate.survival)) {
      key = KeyOf(candidate);
    } else {
      key = keys_.back();
      keys_.pop_back();
      if (keys_.empty()) return;
    }
    Sink(0, key);
  }

 private:
  static constexpr int kRequestBits = 24;
  static constexpr uint64_t kRequestMask = (uint64_t{1} << kRequestBits) - 1;
  static constexpr uint64_t kDraftMask = 0xff;

  static bool Positive(double survival) { return static_cast<float>(survival) > 0; }
  // Bits of positive floats are in the order of their values.
  static uint64_t KeyOf(const Candidate& candidate) {
    return uint64_t{std::bit_cast<uint32_t>(static_cast<float>(candidate.survival))} << 32 |
           (kDraftMask - static_cast<uint64_t>(candidate.j)) << kRequestBits |
           (kRequestMask - static_cast<uint64_t>(candidate.r));
  }
  // Puts a key where the heap from place i downwards has it.
  void Sink(size_t i, uint64_t key) {
    const size_t size = keys_.size();
    for (size_t child; (child = 2 * i + 1) < size; i = child) {
      if (child + 1 < size) child += keys_[child + 1] > keys_[child];
      if (keys_[child] <= key) break;
      keys_[i] = keys_[child];
    }
    keys_[i] = key;
  }

  std::vector<uint64_t> keys_;
};

}  // namespace foresight
