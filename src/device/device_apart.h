// For tests without a GPU: the machine's memory as that of a device which the host doesn't look into.
#pragma once

#include "device/device.h"

namespace foresight {

class DeviceApart : public HostDevice {
 public:
  bool is_host() const override { return false; }
};

}  // namespace foresight
