#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

namespace foresight {
namespace {

Status SystemError(const std::string& path, const char* what, int error) {
  const StatusCode code = error == ENOENT || error == ENOTDIR ? StatusCode::kNotFound
                          : error == ENOMEM || error == EMFILE || error == ENFILE
                              ? StatusCode::kResourceExhausted
                              : StatusCode::kInvalidArgument;
  return Error(code, "{}: {}: {}", path, what, std::generic_category().message(error));
}

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  // Non-blocking, so that a named pipe in place of a file is refused below and not waited for.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError(path, "can't open", errno);
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return SystemError(path, "can't read its size", error);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return InvalidArgument("{}: is {}, not a file", path,
                           S_ISDIR(info.st_mode) ? "a directory" : "a pipe or device");
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) {  // the system maps no empty range
    ::close(fd);
    return MappedFile({});
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  ::close(fd);  // the mapping keeps the file
  if (data == MAP_FAILED) return SystemError(path, "can't map it into memory", error);
  return MappedFile({static_cast<const std::byte*>(data), size});
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void AdviseWillNeed(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const size_t into_page = reinterpret_cast<uintptr_t>(bytes.data()) % page;
  ::madvise(const_cast<std::byte*>(bytes.data()) - into_page, bytes.size() + into_page, MADV_WILLNEED);
}

}  // namespace foresight
