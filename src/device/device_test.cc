#include "device/device.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace foresight
