#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/check.h"
#include "device/device.h"

namespace foresight {

int64_t HostDevice::AvailableBytes() const {
  return int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

Result<DeviceMemory> HostDevice::Allocate(int64_t bytes, std::string_view what) {
  CHECK(bytes >= 0);
  if (bytes == 0) return DeviceMemory();
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    return ResourceExhausted("{}: the system has no {} bytes of address space", what, bytes);
  madvise(p, bytes, MADV_HUGEPAGE);  // advice: a refusal costs speed only
  return DeviceMemory(this, static_cast<std::byte*>(p), bytes);
}

void HostDevice::Free(std::byte* data, int64_t bytes) {
  munmap(data, bytes);
}

void HostDevice::Upload(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

void HostDevice::Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

void HostDevice::Zero(void* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}

void HostDevice::Fetch(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace foresight
