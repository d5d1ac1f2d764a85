// The yardstick of everything that is bound by memory.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/thread_pool.h"

namespace foresight {

// GB/s of plain reads of these bytes, larger in all than any cache, by all threads of the pool, each its own
// parts: one figure a run, ascending; a further run before them warms up.
std::vector<double> MeasureReadBandwidth(ThreadPool& pool, std::span<const std::span<const std::byte>> bytes,
                                         int runs);

}  // namespace foresight
