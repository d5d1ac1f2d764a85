// Counting in shared memory.
#pragma once

#include <cstdint>

namespace foresight::cuda {

// Adds one where `counts`, without a branch; nobody learns what was there before.
__device__ inline void CountIf(bool counts, uint32_t* counter) {
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %0, 0; @p red.shared.add.u32 [%1], 1; }" ::"r"(
                   static_cast<uint32_t>(counts)),
               "r"(static_cast<uint32_t>(__cvta_generic_to_shared(counter)))
               : "memory");
}

}  // namespace foresight::cuda
