// A whole file as read-only memory, paged in by the system as it is touched.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/status.h"

namespace foresight {

class MappedFile {
 public:
  // Follows symbolic links. Errors name the path: kNotFound (no such file), kInvalidArgument (a directory, a
  // device, a loop of links, no permission), kResourceExhausted (the system refuses the mapping).
  static Result<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // Empty for an empty file. Page aligned; valid as long as this object (or the one it was moved to) lives.
  // A file that somebody cuts short meanwhile makes the access fault: the system offers no better.
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

// Tells the system that these bytes of a mapping will be read soon, so that it reads them ahead in large
// pieces. Has no effect on memory that is no file mapping.
void AdviseWillNeed(std::span<const std::byte> bytes);

}  // namespace foresight
