#include "base/text_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

namespace foresight {
namespace {

namespace fs = std::filesystem;

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

Status CanNotRead(const std::string& name, int error) {
  return NotFound("can't read {}: {}", name, std::strerror(error));
}
Status CanNotWrite(const std::string& name, int error) {
  return InvalidArgument("can't write {}: {}", name, std::strerror(error));
}

Result<std::string> ReadAll(std::FILE* file, const std::string& name) {
  std::string text;
  std::vector<char> piece(1 << 16);
  while (const size_t n = std::fread(piece.data(), 1, piece.size(), file)) {
    text.append(piece.data(), n);
    if (std::ssize(text) > kTextBytesMax) {
      return InvalidArgument("{}: want at most {} bytes", name, kTextBytesMax);
    }
  }
  if (std::ferror(file) != 0) return CanNotRead(name, errno);
  return text;
}

// Where a link leads; what isn't there yet stays as it is.
fs::path TargetOf(const std::string& path) {
  std::error_code error;
  const fs::path target = fs::canonical(path, error);
  return error ? fs::path(path) : target;
}

bool IsReplaceable(const fs::path& target) {
  std::error_code error;
  const fs::file_type type = fs::symlink_status(target, error).type();
  return type == fs::file_type::regular || type == fs::file_type::not_found;
}

}  // namespace

Result<std::string> ReadTextFile(const std::string& path) {
  const File file(std::fopen(path.c_str(), "rbe"));
  if (file == nullptr) return CanNotRead(path, errno);
  return ReadAll(file.get(), path);
}

Result<std::string> ReadStandardInput() {
  return ReadAll(stdin, "standard input");
}

Status WriteTextFile(const std::string& path, std::string_view text) {
  const fs::path target = TargetOf(path);
  const bool replaces = IsReplaceable(target);
  const fs::path written = replaces ? fs::path(target.string() + ".part") : target;
  File file(std::fopen(written.c_str(), "wbe"));
  if (file == nullptr) return CanNotWrite(path, errno);
  const bool is_whole = std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
                        std::fflush(file.get()) == 0 && std::fclose(file.release()) == 0;
  if (is_whole && (!replaces || std::rename(written.c_str(), target.c_str()) == 0)) return Status();
  const int error = errno;
  if (replaces) std::remove(written.c_str());
  return CanNotWrite(path, error);
}

Status CheckWritable(const std::string& path) {
  const fs::path target = TargetOf(path);
  std::error_code error;
  if (fs::is_directory(target, error)) return CanNotWrite(path, EISDIR);
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  const fs::path& needed = IsReplaceable(target) ? folder : target;
  if (access(needed.c_str(), W_OK) != 0) return CanNotWrite(path, errno);
  return Status();
}

}  // namespace foresight
