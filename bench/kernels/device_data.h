// For benchmarks of kernels: memory of a device filled with stored weights and cache entries that overflow
// nowhere.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "device/device.h"
#include "kernels/kernel_context.h"
#include "tensor/tensor.h"

namespace foresight {

// Random codes of mild values.
inline void FillCodes(std::span<std::byte> bytes, DType dtype) {
  uint64_t state = 1;
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    uint64_t word = state ^ state >> 29;
    if (dtype == DType::kBF16) word = (word & 0x807f807f807f807f) | 0x3c003c003c003c00;    // 2^-7, any sign
    if (dtype == DType::kF8E4M3) word = (word & 0x8787878787878787) | 0x2020202020202020;  // no NaN
    if (dtype == DType::kF32) word = (word & 0x807fffff807fffff) | 0x3c0000003c000000;
    std::memcpy(&bytes[i], &word, 8);
  }
}

// Memory of one device, never given back before the end.
class DeviceData {
 public:
  static Result<DeviceData> Make(Device& device, int64_t bytes) {
    ASSIGN_OR_RETURN(DeviceMemory memory, device.Allocate(bytes, "data of a benchmark"));
    return DeviceData(device, std::move(memory));
  }

  Arena& arena() { return *arena_; }
  template <typename T>
  T* Allocate(int64_t count) {
    return arena_->Allocate<T>(count);
  }
  template <typename T>
  T* Upload(const std::vector<T>& x) {
    T* to = Allocate<T>(std::ssize(x));
    device_->Upload(to, x.data(), std::ssize(x) * static_cast<int64_t>(sizeof(T)));
    return to;
  }
  // `bytes` of which every `pattern.size()` are the pattern.
  std::byte* Repeat(std::span<const std::byte> pattern, int64_t bytes) {
    std::byte* to = Allocate<std::byte>(bytes);
    int64_t done = std::min(bytes, static_cast<int64_t>(pattern.size()));
    device_->Upload(to, pattern.data(), done);
    for (int64_t part; done < bytes; done += part) {
      part = std::min(done, bytes - done);
      device_->Copy(to + done, to, part);
    }
    return to;
  }
  MatrixView Matrix(DType dtype, int64_t rows, int64_t cols) {
    MatrixView w{.dtype = dtype, .rows = rows, .cols = cols};
    const int64_t data_bytes = rows * w.row_bytes();
    std::vector<std::byte> codes(static_cast<size_t>(std::min(data_bytes, int64_t{1} << 20)));
    FillCodes(codes, dtype);
    w.data = Repeat(codes, data_bytes);
    const std::vector<std::byte> scales(4096, std::byte{122});
    if (w.bytes() > data_bytes) {
      w.scales = reinterpret_cast<const uint8_t*>(Repeat(scales, w.bytes() - data_bytes));
    }
    return w;
  }
  VectorView Vector(DType dtype, int64_t size) {
    const MatrixView row = Matrix(dtype, 1, size);
    return {.dtype = dtype, .size = size, .data = row.data};
  }

 private:
  DeviceData(Device& device, DeviceMemory memory)
      : device_(&device),
        memory_(std::move(memory)),
        arena_(std::make_unique<Arena>(std::span(memory_.data(), static_cast<size_t>(memory_.bytes())))) {}

  Device* device_;
  DeviceMemory memory_;
  std::unique_ptr<Arena> arena_;
};

}  // namespace foresight
