// Which roundings a model computes with.
#pragma once

#include <cstdint>

namespace foresight {

// kClean: no simulated quantisation or rounding of activations and caches. kFaithful: the
// roundings that the released model was trained with; activations are bf16 values (stored as float32), caches
// are packed.
enum class Numerics : uint8_t { kClean, kFaithful };

}  // namespace foresight
