#include "weights/model_files.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/check.h"

namespace foresight {
namespace {

constexpr std::string_view kDraftsFolder = "drafts/";

}  // namespace

ModelFiles::ModelFiles(std::string origin,
                       const std::vector<std::pair<std::string, std::span<const std::byte>>>& files)
    : origin_(std::move(origin)) {
  for (const auto& [name, bytes] : files) {
    const bool is_new = files_.emplace(name, File{nullptr, bytes, Status()}).second;
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

std::vector<std::string> ModelFiles::DraftNames() const {
  std::vector<std::string> names;
  for (auto it = files_.lower_bound(kDraftsFolder); it != files_.end(); ++it) {
    if (!it->first.starts_with(kDraftsFolder)) break;
    std::string name = it->first.substr(kDraftsFolder.size());
    name.resize(name.find('/'));
    if (names.empty() || names.back() != name) names.push_back(std::move(name));
  }
  return names;
}

Result<ModelFiles> ModelFiles::Draft(std::string_view name) const {
  const std::string prefix = fmt::format("{}{}/", kDraftsFolder, name);
  ModelFiles draft;
  draft.origin_ = fmt::format("{}: {}{}", origin_, kDraftsFolder, name);
  for (auto it = files_.lower_bound(prefix); it != files_.end() && it->first.starts_with(prefix); ++it) {
    draft.files_.emplace(it->first.substr(prefix.size()), it->second);
  }
  if (draft.files_.empty()) {
    const std::vector<std::string> names = DraftNames();
    return NotFound("{}: there is no draft head \"{}\"; there {}", origin_, name,
                    names.empty() ? "are none" : fmt::format("are {}", fmt::join(names, ", ")));
  }
  return draft;
}

namespace {

namespace fs = std::filesystem;

// Visits the entries of a directory; an error ends the listing.
template <typename Visit>
Status ForEachEntry(const std::string& path, Visit visit) {
  std::error_code error;
  fs::directory_iterator entry(path, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) visit(entry->path());
  if (error) return InvalidArgument("{}: can't list the directory: {}", path, error.message());
  return Status();
}

}  // namespace

Result<ModelFiles> OpenModelDirectory(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    return NotFound("{}: there is no such directory{}", path, error ? ": " + error.message() : "");
  }
  if (!fs::is_directory(status)) return InvalidArgument("{}: is not a directory", path);
  ModelFiles files;
  files.origin_ = path;
  const auto map_folder = [&files](const std::string& folder, const std::string& prefix) {
    return ForEachEntry(folder, [&](const fs::path& file_path) {
      if (file_path.extension() != ".json" && file_path.extension() != ".safetensors") return;
      ModelFiles::File file;
      if (Result<MappedFile> mapped = MappedFile::Open(file_path.string()); mapped.ok()) {
        file.mapping = std::make_shared<const MappedFile>(std::move(*mapped));
        file.bytes = file.mapping->bytes();
      } else {
        file.status = mapped.status();
      }
      files.files_.emplace(prefix + file_path.filename().string(), std::move(file));
    });
  };
  RETURN_IF_ERROR(map_folder(path, ""));
  const std::string drafts = path + "/" + std::string(kDraftsFolder);
  if (!fs::is_directory(drafts, error)) return files;
  Status result;
  RETURN_IF_ERROR(ForEachEntry(drafts, [&](const fs::path& draft) {
    std::error_code ignored;
    if (!result.ok() || !fs::is_directory(draft, ignored)) return;
    const std::string name = draft.filename().string();
    result = map_folder(draft.string(), fmt::format("{}{}/", kDraftsFolder, name));
  }));
  RETURN_IF_ERROR(result);
  return files;
}

}  // namespace foresight
