// What launches of kernels need to know of a CUDA device, without the headers that a device needs: nvcc reads
// them several times for every file of kernels.
#pragma once

#include <cuda_runtime.h>

namespace foresight {

class Device;

class CudaQueue {
 public:
  cudaStream_t stream() const { return stream_; }
  int num_sms() const { return num_sms_; }
  // [kZeros] counters for blocks of a kernel; it leaves them zero.
  static constexpr int kZeros = 4096;
  int* zeros() const { return zeros_; }
  int capability() const { return capability_; }  // 90 for sm_90, as far as it is to be made use of
  // The first error of a launch or an asynchronous operation stays and ends everything after it.
  virtual void Note(cudaError_t error, const char* what) = 0;

 protected:
  ~CudaQueue() = default;

  cudaStream_t stream_ = nullptr;
  int num_sms_ = 0;
  int* zeros_ = nullptr;
  int capability_ = 0;
};

// Of a CUDA device.
CudaQueue& QueueOf(Device& device);

}  // namespace foresight
