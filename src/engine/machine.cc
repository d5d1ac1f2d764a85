#include "engine/machine.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>

#include "base/thread_pool.h"

namespace foresight {
namespace {

// The value of "key:   value" in a file of such lines; empty when it isn't there.
std::string ReadField(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!std::string_view(line).starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(": \t", key.size());
    if (begin != std::string::npos && line.find(':') < begin) return line.substr(begin);
  }
  return {};
}

std::optional<int64_t> ParseNumber(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

int64_t ReadKilobytes(const char* path, std::string_view key) {
  return ParseNumber(ReadField(path, key)).value_or(0) * 1024;
}

std::optional<int64_t> ReadNumberFile(const char* path) {
  std::ifstream file(path);
  std::string text;
  if (!(file >> text)) return std::nullopt;
  return ParseNumber(text);
}

// What a container leaves of the memory: the limit of its control group less what is used there. The page
// cache counts as used, which errs on the careful side only when the limit is near.
int64_t ControlGroupAvailable() {
  constexpr const char* kFiles[][2] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
  };
  for (const auto& [limit_file, usage_file] : kFiles) {
    const std::optional<int64_t> limit = ReadNumberFile(limit_file);
    const std::optional<int64_t> usage = ReadNumberFile(usage_file);
    if (limit && usage) return std::max<int64_t>(*limit - *usage, 0);
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

Machine DescribeMachine() {
  Machine machine;
  machine.processor = ReadField("/proc/cpuinfo", "model name");
  if (machine.processor.empty()) machine.processor = "unknown processor";
  machine.processors = NumProcessors();
  machine.memory_bytes = ReadKilobytes("/proc/meminfo", "MemTotal");
  machine.available_bytes = std::min(ReadKilobytes("/proc/meminfo", "MemAvailable"), ControlGroupAvailable());
  return machine;
}

ResidentMemory ReadResidentMemory() {
  return {.anonymous_bytes = ReadKilobytes("/proc/self/status", "RssAnon"),
          .file_bytes = ReadKilobytes("/proc/self/status", "RssFile")};
}

}  // namespace foresight
