// For tests without a GPU: the machine's memory as that of a device which the host doesn't look into, and
// from which nothing arrives before it has been waited for. What comes again and again counts as recorded,
// so that other shapes are computed as those.
#pragma once

#include <cstring>
#include <map>
#include <vector>

#include "device/device.h"

namespace foresight {

class DeviceApart : public HostDevice {
 public:
  bool is_host() const override { return false; }
  void Fetch(void* to, const void* from, int64_t bytes) override {
    if (bytes == 0) return;
    const auto* const begin = static_cast<const std::byte*>(from);
    fetched_.push_back({to, {begin, begin + bytes}});
  }
  Status Synchronize() override {
    for (const Fetched& f : fetched_) std::memcpy(f.to, f.bytes.data(), f.bytes.size());
    fetched_.clear();
    ++waits_;
    return Status();
  }
  void Replay(uint64_t key, const std::function<void()>& launches) override {
    ++calls_[key];
    launches();
  }
  bool IsRecorded(uint64_t key) const override {
    const auto found = calls_.find(key);
    return found != calls_.end() && found->second > 2;
  }
  bool IsDueForRecording(uint64_t key, int) override { return ++passed_over_[key] > 2; }
  // Calls of Synchronize so far.
  int64_t waits() const { return waits_; }

 private:
  struct Fetched {
    void* to;
    std::vector<std::byte> bytes;
  };
  std::vector<Fetched> fetched_;
  std::map<uint64_t, int> calls_;        // by key
  std::map<uint64_t, int> passed_over_;  // for other keys
  int64_t waits_ = 0;
};

}  // namespace foresight
