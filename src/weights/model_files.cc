#include "weights/model_files.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/check.h"

namespace foresight {

ModelFiles::ModelFiles(std::string origin,
                       std::vector<std::pair<std::string, std::span<const std::byte>>> files)
    : origin_(std::move(origin)) {
  for (auto& [name, bytes] : files) {
    const bool is_new = files_.emplace(std::move(name), File{nullptr, bytes, Status()}).second;
    CHECK(is_new, "two files of one name in {}", origin_);
  }
}

Result<std::span<const std::byte>> ModelFiles::Find(std::string_view name) const {
  const auto it = files_.find(name);
  if (it == files_.end()) return NotFound("{}: there is no {}", origin_, name);
  if (!it->second.status.ok()) return it->second.status;
  return it->second.bytes;
}

Result<std::string_view> ModelFiles::FindText(std::string_view name) const {
  ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, Find(name));
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::vector<std::string> ModelFiles::Names() const {
  std::vector<std::string> names;
  names.reserve(files_.size());
  for (const auto& [name, file] : files_) names.push_back(name);
  return names;
}

Result<ModelFiles> OpenModelDirectory(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    return NotFound("{}: there is no such directory{}", path, error ? ": " + error.message() : "");
  }
  if (!fs::is_directory(status)) return InvalidArgument("{}: is not a directory", path);
  ModelFiles files;
  files.origin_ = path;
  fs::directory_iterator entry(path, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const fs::path& file_path = entry->path();
    if (file_path.extension() != ".json" && file_path.extension() != ".safetensors") continue;
    ModelFiles::File file;
    if (Result<MappedFile> mapped = MappedFile::Open(file_path.string()); mapped.ok()) {
      file.mapping = std::make_shared<const MappedFile>(std::move(*mapped));
      file.bytes = file.mapping->bytes();
    } else {
      file.status = mapped.status();
    }
    files.files_.emplace(file_path.filename().string(), std::move(file));
  }
  if (error) return InvalidArgument("{}: can't list the directory: {}", path, error.message());
  return files;
}

}  // namespace foresight
