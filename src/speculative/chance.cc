#include "speculative/chance.h"

namespace foresight {

bool KeyedChance::Accept(const RandomKey& key, double p, double q) {
  return RandomSequence(key).Uniform(0) * q < p;
}

TokenId KeyedChance::Draw(const RandomKey& key, const Distribution& distribution) {
  return SampleToken(distribution, key);
}

}  // namespace foresight
