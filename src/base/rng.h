// Counter-based random numbers: a value is a function of a key and an index, so that any of them can be had
// at any time, in any order, on any thread, and again.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace foresight {

// A bijection of 64 bits in which every output bit depends on every input bit (the finaliser of SplitMix64,
// Steele et al. 2014).
constexpr uint64_t MixBits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Draws of one purpose don't share numbers with those of another (dspark.md 3.5).
enum class RandomStream : uint64_t {
  kCoupled = 1,  // the target's draw at a position, with or without drafts, and a draft coupled to it
  kDraft = 2,    // a draft's own draw
  kAccept = 3,   // accepting a draft token
};

// Names a sequence of numbers. `position` is the absolute position that the drawn token will have; `round`
// tells apart repeated draws for it, where they must differ.
struct RandomKey {
  int64_t seed = 0;
  int64_t position = 0;
  int choice = 0;  // of a request with several answers
  RandomStream stream = RandomStream::kCoupled;
  int64_t round = 0;
};

// The numbers of one key.
class RandomSequence {
 public:
  explicit RandomSequence(const RandomKey& key) {
    for (uint64_t part : {static_cast<uint64_t>(key.seed), static_cast<uint64_t>(key.position),
                          static_cast<uint64_t>(key.choice), static_cast<uint64_t>(key.stream),
                          static_cast<uint64_t>(key.round)}) {
      state_ = MixBits(state_ * kGolden + part + kGolden);
    }
  }

  // The sequence of a key, in a word: for those who draw on a device.
  uint64_t state() const { return state_; }
  static RandomSequence FromState(uint64_t state) { return RandomSequence(state); }

  // 64 uniform bits.
  uint64_t operator[](uint64_t index) const { return MixBits(state_ + (index + 1) * kGolden); }
  // 53 uniform bits.
  uint64_t Bits53(uint64_t index) const { return (*this)[index] >> 11; }
  // Uniform in (0, 1).
  double Uniform(uint64_t index) const { return (static_cast<double>(Bits53(index)) + 0.5) * 0x1p-53; }

 private:
  explicit RandomSequence(uint64_t state) : state_(state) {}

  static constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;  // 2^64 / the golden ratio, odd
  uint64_t state_ = 0;
};

// A seed for a request that has none, from the system's randomness. 0 .. 2^53-1: exact in JSON as well.
int64_t RandomSeed();

}  // namespace foresight
