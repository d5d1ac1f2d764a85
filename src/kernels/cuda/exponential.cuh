// Exponentials by one instruction.
#pragma once

namespace foresight::cuda {

// 2^x, of numbers that aren't normal zero; the same bits on every GPU of a kind.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace foresight::cuda
