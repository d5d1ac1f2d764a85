#include "weights/embedded/embedded_model.h"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace foresight {

// Made by CMake in embedded_files.S: one record for each file, ended by a record without a name.
struct EmbeddedFile {
  const char* name;
  const std::byte* begin;
  const std::byte* end;
};
extern "C" const EmbeddedFile foresight_embedded_files[];

ModelFiles EmbeddedModel() {
  std::vector<std::pair<std::string, std::span<const std::byte>>> files;
  for (const EmbeddedFile* file = foresight_embedded_files; file->name != nullptr; ++file) {
    files.emplace_back(file->name, std::span(file->begin, file->end));
  }
  return ModelFiles("embedded model", files);
}

}  // namespace foresight
