// Where a backend's memory lies, and how bytes get there and back.
//
// Kernels, weights, caches and step memory of one model live on one device. Host code never follows a pointer
// to its memory: it uploads what a step needs, and downloads what it wants to read. On the CPU both are the
// same memory, so nothing is copied that need not be.
//
// One thread at a time: the engine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "base/status.h"
#include "tensor/dtype.h"

namespace foresight {

class Device;

// Memory of a device, given back at the end.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Device* device, std::byte* data, int64_t bytes)
      : device_(device), data_(data), bytes_(bytes) {}
  DeviceMemory(DeviceMemory&& other) noexcept { *this = static_cast<DeviceMemory&&>(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  ~DeviceMemory();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  // What it is: "cpu", or the name that its driver gives it.
  virtual std::string_view name() const = 0;
  // Whether the host can follow pointers to its memory.
  virtual bool is_host() const = 0;
  // Bytes that could be allocated now.
  virtual int64_t AvailableBytes() const = 0;

  // Zeros. Outlived by the device. `what` is for the message. Errors: kResourceExhausted.
  virtual Result<DeviceMemory> Allocate(int64_t bytes, std::string_view what) = 0;

  // All in the order of the calls, and in order with the kernels that run on this device. `to` of Upload and
  // Copy, and `from` of Copy and Download, are its memory. Upload is done with `from` when it returns.
  virtual void Upload(void* to, const void* from, int64_t bytes) = 0;
  // The same of a weight's stored values, without its scales. Kernels alone read them there: a device may
  // keep the bits of FP4 codes in another order, which they decode with less work.
  virtual void UploadWeight(void* to, const void* from, int64_t bytes, DType) { Upload(to, from, bytes); }
  // As Upload, of what kernels take for their inputs, which they read behind everything that was before them.
  // (Weights are read earlier.)
  virtual void UploadInputs(void* to, const void* from, int64_t bytes) { Upload(to, from, bytes); }
  virtual void Copy(void* to, const void* from, int64_t bytes) = 0;
  virtual void Zero(void* to, int64_t bytes) = 0;
  // What everything before this call has left in `from`, in `to` once Download or Synchronize returns.
  virtual void Fetch(void* to, const void* from, int64_t bytes) = 0;
  // Waits until `to` holds what everything before this call has left in `from`. Errors: kDeviceError (this or
  // an earlier operation or kernel failed; the device is of no use any more).
  Status Download(void* to, const void* from, int64_t bytes) {
    Fetch(to, from, bytes);
    return Synchronize();
  }
  // Waits for everything before this call. Errors as Download.
  virtual Status Synchronize() = 0;
  // Runs `launches`: kernels, copies and zeroing on this device alone, which are the same at every call with
  // this key, sizes and addresses included. A device may record them and replay them: nothing else in
  // `launches` happens then. What records them is a second call behind the one that runs them.
  virtual void Replay(uint64_t key, const std::function<void()>& launches);
  // Whether a call of Replay with this key would replay.
  virtual bool IsRecorded(uint64_t) const { return false; }
  // A call with this key would come now, but another does as well, is recorded and takes little longer.
  // Whether that was so for more than `calls` calls: then it pays to record this one, by a call of Replay.
  virtual bool IsDueForRecording(uint64_t, int) { return false; }
  // `branch` launches kernels that may run beside what comes after this call, up to the next Join: neither
  // needs what the other writes, and they share no scratch memory (ArenaHold).
  virtual void Fork(const std::function<void()>& branch) { branch(); }
  virtual void Join() {}
  // Calls of Replay so far that a device ran that may yet record them: they take longer than the replays to
  // come, the one that records them far longer.
  virtual int64_t unrecorded_runs() const { return 0; }
  // Kernels make use of no compute capability above this one from here on.
  virtual void RestrictTo(int) {}
  // A number that no other model on this device has, for keys.
  uint64_t NewReplayScope() { return ++replay_scopes_; }

 private:
  friend class DeviceMemory;
  virtual void Free(std::byte* data, int64_t bytes) = 0;

  uint64_t replay_scopes_ = 0;
};

// The machine's memory; physical pages come when they are first touched.
class HostDevice : public Device {
 public:
  std::string_view name() const override { return "cpu"; }
  bool is_host() const override { return true; }
  int64_t AvailableBytes() const override;
  Result<DeviceMemory> Allocate(int64_t bytes, std::string_view what) override;
  void Upload(void* to, const void* from, int64_t bytes) override;
  void Copy(void* to, const void* from, int64_t bytes) override;
  void Zero(void* to, int64_t bytes) override;
  void Fetch(void* to, const void* from, int64_t bytes) override;
  Status Synchronize() override { return Status(); }

 private:
  void Free(std::byte* data, int64_t bytes) override;
};

// Device `ordinal` of the CUDA driver. Errors: kUnimplemented (a build without CUDA, a GPU that kernels are
// not made for), kNotFound (no such device, no driver).
Result<std::unique_ptr<Device>> OpenCudaDevice(int ordinal);
// Whether kernels are made for a GPU of this name and compute capability (75 for sm_75). Errors:
// kUnimplemented, naming it.
Status CheckCudaCapability(std::string_view name, int capability);

}  // namespace foresight
