// A CUDA device: one stream, in whose order everything happens, but for branches.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "device/cuda/cuda_queue.h"
#include "device/device.h"

namespace foresight {

class CudaDevice final : public Device, public CudaQueue {
 public:
  static Result<std::unique_ptr<CudaDevice>> Open(int ordinal);
  ~CudaDevice() override;

  std::string_view name() const override { return name_; }
  bool is_host() const override { return false; }
  int64_t AvailableBytes() const override;
  Result<DeviceMemory> Allocate(int64_t bytes, std::string_view what) override;
  void Upload(void* to, const void* from, int64_t bytes) override;
  void UploadWeight(void* to, const void* from, int64_t bytes, DType dtype) override;
  void UploadInputs(void* to, const void* from, int64_t bytes) override;
  void Copy(void* to, const void* from, int64_t bytes) override;
  void Zero(void* to, int64_t bytes) override;
  void Fetch(void* to, const void* from, int64_t bytes) override;
  Status Synchronize() override;
  // As one CUDA graph per key, once it has come often enough.
  void Replay(uint64_t key, const std::function<void()>& launches) override;
  bool IsRecorded(uint64_t key) const override { return recordings_.contains(key); }
  bool IsDueForRecording(uint64_t key, int calls) override;
  void Fork(const std::function<void()>& branch) override;
  void Join() override;
  int64_t unrecorded_runs() const override { return unrecorded_runs_; }
  void RestrictTo(int capability) override { capability_ = std::min(capability_, capability); }

  void Note(cudaError_t error, const char* what) override;

 private:
  CudaDevice() = default;
  void Free(std::byte* data, int64_t bytes) override;
  cudaGraphExec_t Record(const std::function<void()>& launches);
  // The one that has not been replayed for longest: it is recorded anew once it has come often enough again.
  void ForgetOldest();

  std::string name_;
  cudaStream_t branch_stream_ = nullptr;
  cudaEvent_t forked_ = nullptr;
  cudaEvent_t joined_ = nullptr;
  // Uploads go by way of this ring of pinned memory, half by half: a half is written again once what was
  // copied out of it has arrived.
  std::byte* staging_ = nullptr;
  int64_t staged_ = 0;  // bytes used of the half at hand
  int half_ = 0;
  cudaEvent_t half_done_[2] = {};
  // What is fetched waits in pinned memory for the next Synchronize.
  struct Fetched {
    void* to;
    const std::byte* pinned;
    int64_t bytes;
  };
  std::byte* fetching_ = nullptr;
  int64_t fetched_bytes_ = 0;
  std::vector<Fetched> fetched_;
  struct Recording {
    cudaGraphExec_t graph;
    int64_t replayed;  // the last time, in replays
  };
  std::unordered_map<uint64_t, Recording> recordings_;
  int64_t replays_ = 0;
  std::unordered_map<uint64_t, int> seen_;  // keys: how often they came
  int64_t unrecorded_runs_ = 0;
  Status fault_;
};

}  // namespace foresight
