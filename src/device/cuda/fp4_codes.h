// FP4 weights in the memory of a GPU. As stored, a byte has two E2M1 codes, the first in its lower half.
// Kernels make E4M3 codes of them, four at a time, so the byte's bits are put where that takes the fewest
// operations: those of the first code where E4M3 has them, the others around.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace foresight {

// Where E4M3 has an E2M1's sign, exponent and mantissa; the value is 2^-6 of it.
inline constexpr uint32_t kE2M1InE4M3 = 0x9c;

// Works on four bytes at once, too: `ones` is 0x01 in each of them. From bits 7 to 0, first code s e1 e0 m,
// second code S E1 E0 M: s E1 S e1 e0 m E0 M.
__host__ __device__ constexpr uint32_t ArrangedFp4(uint32_t stored, uint32_t ones = 1) {
  return (stored & 0x08 * ones) << 4 | (stored & 0x07 * ones) << 2 | (stored & 0x40 * ones) |
         (stored & 0x80 * ones) >> 2 | (stored & 0x30 * ones) >> 4;
}
// The E4M3 codes of the first and of the second codes in arranged bytes.
__host__ __device__ constexpr uint32_t FirstInE4M3(uint32_t arranged, uint32_t ones = 1) {
  return arranged & kE2M1InE4M3 * ones;
}
__host__ __device__ constexpr uint32_t SecondInE4M3(uint32_t arranged, uint32_t ones = 1) {
  return (arranged << 2 & 0x8c * ones) | (arranged >> 2 & 0x10 * ones);
}

// Arranges stored bytes in their place on the device.
cudaError_t LaunchArrangeFp4(cudaStream_t stream, uint8_t* codes, int64_t bytes);

}  // namespace foresight
