// What the fuzz targets share: each is one function LLVMFuzzerTestOneInput that feeds a parser and CHECKs
// what its header promises. An error value is a good result; a crash, a sanitizer's report and a failed CHECK
// are bugs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "base/check.h"

namespace foresight {

// Takes numbers and texts from the front of an input; what is no longer there reads as zero.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  template <typename Int>
  Int Take() {
    static_assert(std::is_integral_v<Int>);
    Int value = 0;
    const size_t size = sizeof(Int) < rest_.size() ? sizeof(Int) : rest_.size();
    std::memcpy(&value, rest_.data(), size);
    rest_.remove_prefix(size);
    return value;
  }
  std::string_view rest() const { return rest_; }
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

}  // namespace foresight
