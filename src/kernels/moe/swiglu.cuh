// What stands between an expert's products.
#pragma once

#include "kernels/cuda/formats.cuh"

namespace foresight::cuda {

struct Swiglu {
  float limit;  // 0: none
  bool faithful;

  __device__ float operator()(float gate, float up, float weight) const {
    if (limit > 0) {
      gate = gate > limit ? limit : gate;  // no lower bound
      up = up > limit ? limit : up < -limit ? -limit : up;
    }
    const float a = weight * (gate / (1.0f + expf(-gate)) * up);
    return faithful ? RoundBf16(a) : a;
  }
};

}  // namespace foresight::cuda
