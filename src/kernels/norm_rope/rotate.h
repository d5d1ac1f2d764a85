// The rotation of one head's rotary part: the definition (model spec 2.1, interleaved pairs).
#pragma once

namespace foresight {

// v [2*pairs]: (v[2i], v[2i+1]) turned by the angle with the given cos and sin.
inline void Rotate(float* v, int pairs, const float* cos, const float* sin) {
  for (int i = 0; i < pairs; ++i) {
    const double a = v[2 * i];
    const double b = v[2 * i + 1];
    v[2 * i] = static_cast<float>(a * cos[i] - b * sin[i]);
    v[2 * i + 1] = static_cast<float>(a * sin[i] + b * cos[i]);
  }
}

// The inverse: by minus the angle.
inline void RotateBack(float* v, int pairs, const float* cos, const float* sin) {
  for (int i = 0; i < pairs; ++i) {
    const double a = v[2 * i];
    const double b = v[2 * i + 1];
    v[2 * i] = static_cast<float>(a * cos[i] + b * sin[i]);
    v[2 * i + 1] = static_cast<float>(b * cos[i] - a * sin[i]);
  }
}

}  // namespace foresight
