#include "base/text_file.h"

#include <fstream>
#include <vector>

namespace foresight {

Result<std::string> ReadText(std::istream& in, const std::string& name) {
  std::string text;
  for (std::vector<char> piece(1 << 16); in;) {
    in.read(piece.data(), std::ssize(piece));
    text.append(piece.data(), static_cast<size_t>(in.gcount()));
    if (std::ssize(text) > kTextBytesMax) {
      return InvalidArgument("{}: want at most {} bytes", name, kTextBytesMax);
    }
  }
  if (!in.eof()) return NotFound("can't read {}", name);
  return text;
}

Result<std::string> ReadTextFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return ReadText(file, path);
}

}  // namespace foresight
