// The logits of a step, wherever they lie: rows for the device's draws, and rows brought to the host for
// its own.
#pragma once

#include <span>

#include "base/arena.h"
#include "model/model.h"

namespace foresight {

class LogitRows {
 public:
  explicit LogitRows(Model& model)
      : device_(model.device()), vocab_size_(model.config().vocab_size), host_(kAddressSpace) {}

  // Rows of another step; what was fetched is gone.
  void Reset(const StepOutputs& outputs) {
    outputs_ = outputs;
    host_.Rewind(0);
  }
  // In the device's memory.
  const float* OnDevice(int row) const { return outputs_.device_logits + row * vocab_size_; }
  // In the host's, once the device has been waited for (Device::Synchronize).
  std::span<const float> Fetch(int row, int count) {
    const int64_t values = count * vocab_size_;
    if (!outputs_.logits.empty()) return outputs_.logits.subspan(row * vocab_size_, values);
    float* const to = host_.Allocate<float>(values);
    device_.Fetch(to, OnDevice(row), values * static_cast<int64_t>(sizeof(float)));
    return {to, static_cast<size_t>(values)};
  }

 private:
  static constexpr size_t kAddressSpace = size_t{64} << 30;

  Device& device_;
  const int64_t vocab_size_;
  StepOutputs outputs_;
  Arena host_;
};

}  // namespace foresight
