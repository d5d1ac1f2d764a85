// A kernel table and the device whose memory it works in.
#pragma once

#include <memory>
#include <string_view>

#include "base/status.h"
#include "device/device.h"
#include "kernels/kernel_table.h"

namespace foresight {

struct Backend {
  const KernelTable* kernels = nullptr;
  std::unique_ptr<Device> device;  // null: the machine itself
};

// `device` as of `--device`: "cpu", "cuda" (the first one), "cuda:N". `table` as of `--table`: "auto" (the
// best of the device), or a name of FindKernels. Errors: kInvalidArgument (no such name, or a table of
// another device), kNotFound (no such device), kUnimplemented (this processor, GPU or build lacks it).
Result<Backend> OpenBackend(std::string_view device, std::string_view table);

}  // namespace foresight
