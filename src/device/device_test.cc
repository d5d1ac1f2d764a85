#include "device/device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

namespace foresight {
namespace {

TEST(CheckCudaCapability, NamesAGpuThatKernelsAreNotMadeFor) {
  for (int capability : {50, 61, 70, 75}) {
    const Status status = CheckCudaCapability("Tesla T4", capability);
    EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
    EXPECT_NE(status.message().find(fmt::format("Tesla T4 is sm_{}", capability)), std::string::npos)
        << status.message();
  }
}

TEST(CheckCudaCapability, TakesAllFromAmpereOn) {
  for (int capability : {80, 86, 89, 90, 100, 120}) {
    EXPECT_TRUE(CheckCudaCapability("a GPU", capability).ok()) << capability;
  }
}

// Small ones go other ways than large ones.
TEST(CudaCopies, BringAnyNumberOfBytesThereAndBack) {
  Result<std::unique_ptr<Device>> opened = OpenCudaDevice(0);
  if (!opened.ok()) GTEST_SKIP() << opened.error().message();
  Device& device = **opened;
  constexpr int64_t kRoom = 70000;
  const Result<DeviceMemory> memory = device.Allocate(kRoom, "a test");
  ASSERT_TRUE(memory.ok());
  std::mt19937 rng(1);
  for (int64_t bytes : {1, 3, 16, 17, 511, 512, 513, 1536, 1537, 3839, 3840, 3841, 4096, 4097, 60000}) {
    for (int64_t at : {0, 16, 64, 68, 1029}) {
      std::vector<std::byte> sent(bytes);
      for (std::byte& b : sent) b = static_cast<std::byte>(rng() % 255 + 1);
      device.Zero(memory->data(), kRoom);
      device.UploadInputs(memory->data() + at, sent.data(), bytes);
      std::vector<std::byte> got(bytes), all(kRoom);
      device.Fetch(got.data(), memory->data() + at, bytes / 2);
      device.Fetch(got.data() + bytes / 2, memory->data() + at + bytes / 2, bytes - bytes / 2);
      ASSERT_TRUE(device.Download(all.data(), memory->data(), kRoom).ok());
      EXPECT_EQ(got, sent) << bytes << " at " << at;
      std::vector<std::byte> want(kRoom);
      std::copy(sent.begin(), sent.end(), want.begin() + at);
      EXPECT_EQ(all, want) << bytes << " at " << at;
    }
  }
}

// More kinds of steps than a device keeps recordings of: those that go are the ones nobody asks for.
TEST(CudaRecordings, KeepWhatIsReplayed) {
  Result<std::unique_ptr<Device>> opened = OpenCudaDevice(0);
  if (!opened.ok()) GTEST_SKIP() << opened.error().message();
  Device& device = **opened;
  constexpr int kKinds = 400;
  const Result<DeviceMemory> memory = device.Allocate(kKinds, "a test");
  ASSERT_TRUE(memory.ok());
  // What it wrote, and whether it was a replay.
  const auto replays = [&](int kind) {
    const std::vector<std::byte> ones(kKinds, std::byte{1});
    device.Upload(memory->data(), ones.data(), kKinds);
    const int64_t unrecorded = device.unrecorded_runs();
    device.Replay(kind, [&] { device.Zero(memory->data() + kind, 1); });
    std::vector<std::byte> got(kKinds), want = ones;
    EXPECT_TRUE(device.Download(got.data(), memory->data(), kKinds).ok());
    want[kind] = std::byte{0};
    EXPECT_EQ(got, want) << kind;
    return device.unrecorded_runs() == unrecorded;
  };
  for (int kind = 0; kind < kKinds; ++kind) {
    int runs = 0;
    while (runs < 100 && !replays(kind)) ++runs;
    ASSERT_LT(runs, 100) << kind;
    EXPECT_TRUE(replays(0)) << kind;  // asked for all the time
  }
  EXPECT_TRUE(replays(kKinds - 1));
  EXPECT_FALSE(replays(1));
}

// Kernels' tests hold the order of bits to what kernels make of it.
TEST(CudaWeights, AreKeptAsStoredButForTheBitsOfFp4Codes) {
  Result<std::unique_ptr<Device>> opened = OpenCudaDevice(0);
  if (!opened.ok()) GTEST_SKIP() << opened.error().message();
  Device& device = **opened;
  std::vector<uint8_t> stored(3 * 256 + 5);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<uint8_t>(i);
  const auto there_and_back = [&](int64_t at, int64_t bytes, DType dtype) {
    const Result<DeviceMemory> memory = device.Allocate(1024, "a test");
    EXPECT_TRUE(memory.ok());
    device.UploadWeight(memory->data() + at, stored.data(), bytes, dtype);
    std::vector<uint8_t> kept(stored.size());
    EXPECT_TRUE(device.Download(kept.data(), memory->data() + at, bytes).ok());
    return kept;
  };
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    EXPECT_EQ(there_and_back(0, std::ssize(stored), dtype), stored);
  }
  const std::vector<uint8_t> arranged = there_and_back(0, std::ssize(stored), DType::kI8);
  EXPECT_EQ(std::set<uint8_t>(arranged.begin(), arranged.begin() + 256).size(), 256u);
  for (size_t i = 256; i < stored.size(); ++i) EXPECT_EQ(arranged[i], arranged[i % 256]);
  for (const int64_t bytes : {0, 1, 3, 16, 255}) {
    for (const int64_t at : {1, 4}) {
      const std::vector<uint8_t> some = there_and_back(at, bytes, DType::kI8);
      EXPECT_TRUE(std::equal(some.begin(), some.begin() + bytes, arranged.begin())) << bytes << " at " << at;
    }
  }
}

}  // namespace
}  // namespace foresight
