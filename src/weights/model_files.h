// A model's files as named ranges of bytes: a mapped directory, or files linked into the program.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mapped_file.h"
#include "base/status.h"

namespace foresight {

// A cheap handle: copies share the mappings, and the bytes stay valid as long as one of them lives.
class ModelFiles {
 public:
  ModelFiles() = default;  // no files
  // Files in memory that outlives every copy. Names differ from each other.
  ModelFiles(std::string origin,
             const std::vector<std::pair<std::string, std::span<const std::byte>>>& files);

  // The bytes of a file. Errors: kNotFound; or why the file can't be used (a directory in its place, ...).
  Result<std::span<const std::byte>> Find(std::string_view name) const;
  // The same as text.
  Result<std::string_view> FindText(std::string_view name) const;
  bool Contains(std::string_view name) const { return files_.find(name) != files_.end(); }
  // All names, sorted.
  std::vector<std::string> Names() const;
  bool empty() const { return files_.empty(); }
  // The draft heads that lie beside the model, drafts/<name>/: names, sorted.
  std::vector<std::string> DraftNames() const;
  // The files of one: config.json and model.safetensors, without the folder in front. Errors: kNotFound, with
  // the names that there are.
  Result<ModelFiles> Draft(std::string_view name) const;
  // Where the files are, for messages: the directory's path, or "embedded model".
  const std::string& origin() const { return origin_; }

 private:
  friend Result<ModelFiles> OpenModelDirectory(const std::string& path);
  struct File {
    std::shared_ptr<const MappedFile> mapping;  // empty when in memory
    std::span<const std::byte> bytes;
    Status status;  // why there are no bytes
  };
  std::string origin_;
  std::map<std::string, File, std::less<>> files_;
};

// Maps every *.json and *.safetensors of a directory and of its drafts/<name>/; other folders are left alone.
// A file that can't be mapped is an error only for who asks for it. Errors: kNotFound, kInvalidArgument (no
// directory, can't be read).
Result<ModelFiles> OpenModelDirectory(const std::string& path);

}  // namespace foresight
