// All outcomes of code whose random decisions come through Chance, with their probabilities.
#pragma once

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "speculative/chance.h"

namespace foresight {

// The noise of a key is one uniform number u, of which an interval is known; a decision that the interval
// doesn't settle is taken both ways, in two runs. So decisions that share a key are as dependent as they are
// in the program: of two draws with the same noise (the coupled rule, or a mistake) the law is that of u
// common to both. For two tokens this is the coupling by Gumbel noise itself; for more tokens each draw has
// its own law and their dependence is that of inverse cumulative sums.
class EnumeratedChance : public Chance {
 public:
  bool Accept(const RandomKey& key, double p, double q) override { return Below(key, p / q); }

  TokenId Draw(const RandomKey& key, const Distribution& distribution) override {
    double sum = 0;
    for (size_t i = 0; i + 1 < distribution.tokens.size(); ++i) {
      sum += distribution.Probability(distribution.tokens[i]);
      if (Below(key, sum)) return distribution.tokens[i];
    }
    return distribution.tokens.back();
  }

  // Calls run() once for every outcome; probability() is then that of the outcome. Returns their number.
  template <typename Run>
  int64_t ForAll(Run run) {
    path_.clear();
    for (int64_t count = 1;; ++count) {
      noise_.clear();
      probability_ = 1;
      step_ = 0;
      run();
      while (!path_.empty() && !path_.back()) path_.pop_back();
      if (path_.empty()) return count;
      path_.back() = false;
    }
  }
  double probability() const { return probability_; }

 private:
  struct Interval {
    double low = 0;
    double high = 1;
  };
  using Key = std::tuple<int64_t, int64_t, int, uint64_t, int64_t>;

  // u(key) < threshold
  bool Below(const RandomKey& key, double threshold) {
    Interval& u =
        noise_[Key(key.seed, key.position, key.choice, static_cast<uint64_t>(key.stream), key.round)];
    if (threshold >= u.high) return true;
    if (threshold <= u.low) return false;
    if (step_ == path_.size()) path_.push_back(true);
    const bool below = path_[step_++];
    const double width = u.high - u.low;
    (below ? u.high : u.low) = threshold;
    probability_ *= (u.high - u.low) / width;
    return below;
  }

  std::map<Key, Interval> noise_;
  std::vector<bool> path_;  // decisions of this run; those after the last true have been taken both ways
  size_t step_ = 0;
  double probability_ = 1;
};

// The mistake of dspark.md 3.5: the draft's noise doesn't know the round.
class RoundBlindChance final : public EnumeratedChance {
 public:
  bool Accept(const RandomKey& key, double p, double q) override {
    return EnumeratedChance::Accept(Blind(key), p, q);
  }
  TokenId Draw(const RandomKey& key, const Distribution& distribution) override {
    return EnumeratedChance::Draw(Blind(key), distribution);
  }

 private:
  static RandomKey Blind(RandomKey key) {
    key.round = 0;
    return key;
  }
};

}  // namespace foresight
