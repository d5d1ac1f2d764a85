#include "tensor/dtype.h"

#include <array>

namespace foresight {
namespace {

struct Entry {
  DType dtype;
  std::string_view name;
  size_t bytes;
};
constexpr std::array<Entry, 6> kEntries = {{
    {DType::kF32, "F32", 4},
    {DType::kBF16, "BF16", 2},
    {DType::kF8E4M3, "F8_E4M3", 1},
    {DType::kF8E8M0, "F8_E8M0", 1},
    {DType::kI8, "I8", 1},
    {DType::kI64, "I64", 8},
}};

}  // namespace

size_t DTypeBytes(DType dtype) {
  return kEntries[static_cast<size_t>(dtype)].bytes;
}

std::string_view DTypeName(DType dtype) {
  return kEntries[static_cast<size_t>(dtype)].name;
}

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const Entry& e : kEntries) {
    if (e.name == name) return e.dtype;
  }
  return std::nullopt;
}

}  // namespace foresight
