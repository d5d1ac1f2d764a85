// What the host makes for a step and kernels read.
//
//   int64_t* positions = staging.Allocate<int64_t>(rows);   // written by the host
//   staging.Flush();                                        // one copy to the device
//   kernel(..., staging.OnDevice(positions));
//
// On a device that is the host, nothing is copied and OnDevice gives the pointer itself.
#pragma once

#include <sanitizer/asan_interface.h>  // its macros are empty in other builds

#include <cstddef>
#include <cstdint>

#include "base/arena.h"
#include "device/device.h"

namespace foresight {

class Staging {
 public:
  // The device's part comes from `arena`, which is only rewound between steps.
  Staging(Device& device, Arena& arena) : device_(device), arena_(arena), host_(kAddressSpace) {}

  // A new step.
  void Restart() {
    host_.Rewind(0);
    base_ = nullptr;
    flushed_ = 0;
    delta_ = 0;
  }

  template <typename T>
  T* Allocate(int64_t count) {
    T* data = host_.Allocate<T>(count);
    if (base_ == nullptr) base_ = reinterpret_cast<std::byte*>(data);
    return data;
  }

  // Brings what was allocated since the last Flush to the device.
  void Flush() {
    if (!device_.is_host() && host_.used() > flushed_) {
      const size_t begin = (flushed_ + 63) / 64 * 64;  // where the arena's first allocation since then lies
      const int64_t bytes = static_cast<int64_t>(host_.used() - begin);
      ASAN_UNPOISON_MEMORY_REGION(base_ + begin, bytes);  // gaps between allocations go along
      std::byte* to = arena_.Allocate<std::byte>(bytes);
      device_.UploadInputs(to, base_ + begin, bytes);
      delta_ = to - (base_ + begin);
    }
    flushed_ = host_.used();
  }

  // What was allocated since the last Flush is for the host alone.
  void KeepOnHost() { flushed_ = host_.used(); }

  // Where something of the last Flush lies.
  template <typename T>
  T* OnDevice(T* host) const {
    const std::byte* there = reinterpret_cast<const std::byte*>(host) + delta_;
    return reinterpret_cast<T*>(const_cast<std::byte*>(there));
  }

  size_t host_bytes() const { return host_.high_water(); }

 private:
  static constexpr size_t kAddressSpace = size_t{1} << 32;

  Device& device_;
  Arena& arena_;
  Arena host_;
  std::byte* base_ = nullptr;  // the first allocation of this step
  size_t flushed_ = 0;
  std::ptrdiff_t delta_ = 0;
};

}  // namespace foresight
