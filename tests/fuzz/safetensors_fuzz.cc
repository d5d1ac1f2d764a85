// The safetensors container: the input as a file, and as the header of a file with 64 bytes of data.
#include <string>

#include "tests/fuzz/fuzz_input.h"
#include "weights/safetensors.h"

namespace foresight {
namespace {

void ParseAndCheck(std::string_view file) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(file));
  const Result<std::vector<StoredTensor>> tensors = ParseSafetensors(bytes);
  if (!tensors.ok()) {
    CHECK(!tensors.status().message().empty());
    return;
  }
  // They tile the end of the file, and their sizes are those of their shapes.
  const std::byte* next = tensors->empty() ? nullptr : tensors->front().bytes.data();
  for (const StoredTensor& t : *tensors) {
    CHECK(t.shape.size() <= kSafetensorsRankMax);
    uint64_t size = DTypeBytes(t.dtype);
    for (const int64_t n : t.shape) {
      CHECK(n >= 0);
      size *= static_cast<uint64_t>(n);
    }
    CHECK(t.bytes.size() == size, "{}", t.name);
    CHECK(t.bytes.data() == next, "{}", t.name);
    next += size;
    CHECK(!ShapeToString(t.shape).empty());
  }
  CHECK(tensors->empty() || next == bytes.data() + bytes.size());
}

}  // namespace
}  // namespace foresight

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  foresight::ParseAndCheck(input);
  std::string file(8, '\0');
  const uint64_t header_bytes = size;
  std::memcpy(file.data(), &header_bytes, 8);
  foresight::ParseAndCheck(file.append(input).append(64, '\1'));
  return 0;
}
