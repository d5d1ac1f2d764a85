// For tests of device kernels: the first CUDA device, memory on it, and the way there and back.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "device/device.h"
#include "kernels/kernel_context.h"
#include "kernels/kernel_table.h"
#include "tensor/tensor.h"

namespace foresight {

// Uploads stay until Clear() or the end.
class KernelDevice {
 public:
  // Takes `bytes` for uploads and as much for scratch. Errors: kResourceExhausted.
  static Result<std::unique_ptr<KernelDevice>> Make(std::unique_ptr<Device> device,
                                                    int64_t bytes = int64_t{512} << 20) {
    ASSIGN_OR_RETURN(DeviceMemory uploads, device->Allocate(bytes, "uploads of a test"));
    ASSIGN_OR_RETURN(DeviceMemory scratch, device->Allocate(bytes, "scratch of a test"));
    return std::unique_ptr<KernelDevice>(
        new KernelDevice(std::move(device), std::move(uploads), std::move(scratch)));
  }

  Device& device() { return *device_; }
  // For entries of the CUDA table. Definitions take KernelHost's (cache_fixture.h).
  KernelContext context(Numerics numerics) {
    return {.device = device_.get(), .scratch = &scratch_, .numerics = numerics};
  }

  template <typename T>
  T* Upload(std::span<const T> x) {
    T* to = uploads_.Allocate<T>(static_cast<int64_t>(x.size()));
    device_->Upload(to, x.data(), static_cast<int64_t>(x.size_bytes()));
    return to;
  }
  template <typename T>
  T* Upload(const std::vector<T>& x) {
    return Upload(std::span<const T>(x));
  }
  VectorView Upload(VectorView v) {
    v.data = Upload(std::span(v.data, static_cast<size_t>(v.size) * DTypeBytes(v.dtype)));
    return v;
  }
  MatrixView Upload(MatrixView m) {
    const int64_t data_bytes = m.rows * m.row_bytes();
    if (m.scales != nullptr) {
      m.scales = Upload(std::span(m.scales, static_cast<size_t>(m.bytes() - data_bytes)));
    }
    std::byte* data = uploads_.Allocate<std::byte>(data_bytes);
    device_->UploadWeight(data, m.data, data_bytes, m.dtype);
    m.data = data;
    return m;
  }
  // For outputs: bytes 0xFF, NaN in every format.
  template <typename T>
  T* Allocate(int64_t count) {
    return reinterpret_cast<T*>(
        Upload(std::vector<std::byte>(static_cast<size_t>(count) * sizeof(T), std::byte{0xff})));
  }
  // Waits for everything before. A fault of the device fails the test.
  template <typename T>
  std::vector<T> Download(const T* from, int64_t count) {
    std::vector<T> x(static_cast<size_t>(count));
    const Status status = device_->Download(x.data(), from, count * static_cast<int64_t>(sizeof(T)));
    EXPECT_TRUE(status.ok()) << status.message();
    return x;
  }
  void Clear() { uploads_.Rewind(0); }

 private:
  KernelDevice(std::unique_ptr<Device> device, DeviceMemory uploads, DeviceMemory scratch)
      : device_(std::move(device)),
        upload_memory_(std::move(uploads)),
        scratch_memory_(std::move(scratch)),
        uploads_(std::span(upload_memory_.data(), static_cast<size_t>(upload_memory_.bytes()))),
        scratch_(std::span(scratch_memory_.data(), static_cast<size_t>(scratch_memory_.bytes()))) {}

  std::unique_ptr<Device> device_;
  DeviceMemory upload_memory_;
  DeviceMemory scratch_memory_;
  Arena uploads_;
  Arena scratch_;
};

// A fixture that skips its tests where there is no CUDA device: OnDevice<testing::TestWithParam<Case>>.
template <typename Base = testing::Test>
class OnDevice : public Base {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Device>> device = OpenCudaDevice(0);
    if (!device.ok()) {
      const StatusCode code = device.error().code();
      ASSERT_TRUE(code == StatusCode::kNotFound || code == StatusCode::kUnimplemented)
          << device.error().message();
      GTEST_SKIP() << device.error().message();
    }
    Result<std::unique_ptr<KernelDevice>> made = KernelDevice::Make(std::move(*device));
    ASSERT_TRUE(made.ok()) << made.error().message();
    device_ = std::move(*made);
    table_ = *CudaKernels();  // present in every build that can open a device
  }

  std::unique_ptr<KernelDevice> device_;
  const KernelTable* table_ = nullptr;
};

}  // namespace foresight
