// Where the random decisions of drafting and acceptance come from: the one seam through which the proof of
// exactness (tests/speculative) enumerates all outcomes of the code that serves requests.
#pragma once

#include <optional>

#include "base/ids.h"
#include "base/rng.h"
#include "sampling/distribution.h"

namespace foresight {

// Several threads may ask at once.
class Chance {
 public:
  virtual ~Chance() = default;
  // u(key) * q < p with u uniform in (0, 1): true with probability min(1, p / q). q > 0.
  virtual bool Accept(const RandomKey& key, double p, double q) = 0;
  // With what probability the draft of this key is accepted, where that doesn't follow from p and q: for
  // whoever judges without Accept.
  virtual std::optional<double> GivenProbability([[maybe_unused]] const RandomKey& key) {
    return std::nullopt;
  }
  // A token of the distribution.
  virtual TokenId Draw(const RandomKey& key, const Distribution& distribution) = 0;
};

// Pure functions of the key (base/rng.h): what requests are served with.
class KeyedChance final : public Chance {
 public:
  bool Accept(const RandomKey& key, double p, double q) override;
  TokenId Draw(const RandomKey& key, const Distribution& distribution) override;
};

}  // namespace foresight
