// The next drafts of all requests, the most likely to be reached and accepted first.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace foresight {

// A tournament of one candidate for each request: draft j of request r with its survival. Equal survivals (as
// float32): the lower j, then the lower r first, an order that doesn't look at tokens. Candidates with
// survival 0 don't take part. Another candidate for the winner's request replays its path alone, without a
// branch that depends on survivals. Allocates in the constructor only.
class FrontierQueue {
 public:
  struct Candidate {
    int r = 0;
    int j = 0;
    double survival = 0;
  };

  explicit FrontierQueue(int requests_max) { best_.reserve(2 * std::bit_ceil(size_t(requests_max))); }

  // No candidates of so many requests.
  void Clear(int num_requests) { best_.assign(2 * std::bit_ceil(static_cast<size_t>(num_requests)), 0); }
  // Before the first look at the top, Order() must be called.
  void Add(const Candidate& candidate) { best_[leaves() + candidate.r] = KeyOf(candidate); }
  void Order() {
    for (size_t i = leaves(); i-- > 1;) best_[i] = std::max(best_[2 * i], best_[2 * i + 1]);
  }

  bool empty() const { return best_[1] == 0; }
  Candidate top() const {
    const uint64_t key = best_[1];
    return {.r = static_cast<int>(kRequestMask - (key & kRequestMask)),
            .j = static_cast<int>(kDraftMask - (key >> kRequestBits & kDraftMask)),
            .survival = std::bit_cast<float>(static_cast<uint32_t>(key >> 32))};
  }
  // The top's request has another candidate now; survival 0: none.
  void ReplaceTop(const Candidate& candidate) {
    size_t i = leaves() + candidate.r;
    uint64_t key = KeyOf(candidate);
    best_[i] = key;
    for (; i > 1; i /= 2) best_[i / 2] = key = std::max(key, best_[i ^ 1]);
  }

 private:
  static constexpr int kRequestBits = 24;
  static constexpr uint64_t kRequestMask = (uint64_t{1} << kRequestBits) - 1;
  static constexpr uint64_t kDraftMask = 0xff;

  // Bits of positive floats are in the order of their values. 0: no candidate.
  static uint64_t KeyOf(const Candidate& candidate) {
    const float survival = static_cast<float>(candidate.survival);
    if (!(survival > 0)) return 0;
    return uint64_t{std::bit_cast<uint32_t>(survival)} << 32 |
           (kDraftMask - static_cast<uint64_t>(candidate.j)) << kRequestBits |
           (kRequestMask - static_cast<uint64_t>(candidate.r));
  }

  size_t leaves() const { return best_.size() / 2; }

  std::vector<uint64_t> best_ = {0, 0};  // [2 * leaves]: of 2 i and 2 i + 1 the better one is at i
};

}  // namespace foresight
