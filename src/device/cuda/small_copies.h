// Copies of a few bytes by a kernel: one is a link of the chain of kernels like any other, where a copy by
// the driver makes them wait for an engine of its own, at its beginning and at its end.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace foresight {

// What a launch carries along, at most.
inline constexpr int64_t kCarriedBytesMax = 3840;
inline constexpr int64_t kSmallFetchMax = 4096;

// Puts the host's `from` at `to`, which is aligned to 16 bytes; done with `from` on return. `early`: the next
// kernel may start before this one ends (programmatic dependent launch, from sm_90 on).
cudaError_t LaunchCarry(cudaStream_t stream, bool early, std::byte* to, const std::byte* from, int64_t bytes);
// Copies device memory into pinned memory of the host.
cudaError_t LaunchSmallFetch(cudaStream_t stream, bool early, std::byte* pinned, const std::byte* from,
                             int64_t bytes);

}  // namespace foresight
