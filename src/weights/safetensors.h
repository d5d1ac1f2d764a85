// The safetensors container: a little-endian u64 with the length of a JSON header, the header, the tensors'
// bytes.
//
//   {"__metadata__": {"k": "v"}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
//
// Offsets count from the end of the header. The format asks that the tensors cover the data without gap or
// overlap; so do we.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tensor/dtype.h"

namespace foresight {

// The format's own limit on the header, and ours on a tensor's rank.
inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;
inline constexpr size_t kSafetensorsRankMax = 8;

struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // shape and dtype agree with its size; aligned by chance only
};

// The tensors of one file, in the order of their bytes. Errors: kDataLoss (cut off, lengths that contradict
// each other), kInvalidArgument (anything else), with the tensor's name and the place; problems of several
// tensors are listed together.
Result<std::vector<StoredTensor>> ParseSafetensors(std::span<const std::byte> file);

// "[2, 3]"
std::string ShapeToString(std::span<const int64_t> shape);

}  // namespace foresight
