#include "base/rng.h"

#include <random>

namespace foresight {

int64_t RandomSeed() {
  std::random_device device;
  const uint64_t high = device();
  return static_cast<int64_t>((high << 32 | device()) >> 11);
}

}  // namespace foresight
