// Storage types of the official checkpoints (model spec 3.1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace foresight {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF8E4M3,  // OCP "fn": bias 7, no infinity, 0x7F/0xFF NaN
  kF8E8M0,  // a power of two, 2^(byte-127); 255 is NaN
  kI8,      // two packed E2M1 values, the low nibble first
  kI64,
};

// Bytes of one stored element (for kI8: of one byte, that is two FP4 values).
size_t DTypeBytes(DType dtype);
// The name in a safetensors header: "F32", "BF16", "F8_E4M3", "F8_E8M0", "I8", "I64".
std::string_view DTypeName(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

}  // namespace foresight
