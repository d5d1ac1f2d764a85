// Copies from global to shared memory of what nobody reads again (sm_80).
#pragma once

#include <cstdint>

namespace foresight::cuda {

// As CopyAsync() of 16 bytes, past the first-level cache, and first to leave the second-level one: what else
// is there stays, other kernels' instructions above all.
//
// Keep the address in shared memory in a variable of the lane's own that moves along. Beside a uniform slot
// ptxas 13.0 addresses by a uniform register too, encodes this together with the policy wrongly, and the
// device faults (illegal instruction; LDGSTS with [R + UR] and a policy).
class CopyOnce {
 public:
  __device__ CopyOnce() {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
  }
  __device__ void Copy(void* to, const void* from) const {
    Copy(static_cast<uint32_t>(__cvta_generic_to_shared(to)), from);
  }
  __device__ void Copy(uint32_t to, const void* from) const {  // an address in shared memory
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "l"(policy_)
                 : "memory");
  }

 private:
  uint64_t policy_;
};

}  // namespace foresight::cuda
