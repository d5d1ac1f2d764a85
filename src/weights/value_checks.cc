#include "weights/value_checks.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#include "base/mapped_file.h"
#include "weights/safetensors.h"

namespace foresight {
namespace {

// One range of values of one tensor.
struct Job {
  const TensorSpec* tensor = nullptr;
  std::span<const std::byte> bytes;
};

// The first index whose value is bad. The test runs over blocks without a branch, so that the compiler makes
// vector code of it; the index is looked for in the block where it failed.
template <typename T, typename Bad>
std::optional<int64_t> FindBad(std::span<const std::byte> bytes, Bad bad) {
  const T* values = reinterpret_cast<const T*>(bytes.data());
  const int64_t count = static_cast<int64_t>(bytes.size() / sizeof(T));
  constexpr int64_t kBlock = 4096;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    T any = 0;
    for (int64_t i = begin; i < end; ++i) any |= static_cast<T>(bad(values[i]));
    if (any == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (bad(values[i])) return i;
    }
  }
  return std::nullopt;
}

// "[3, 17]" of a flat index.
std::string Place(const TensorSpec& tensor, int64_t index) {
  std::vector<int64_t> place(tensor.shape.size());
  for (size_t i = place.size(); i-- > 0; index /= tensor.shape[i]) place[i] = index % tensor.shape[i];
  return ShapeToString(place);
}

void Check(const Job& job, int64_t num_experts, ProblemList* problems) {
  std::optional<int64_t> bad;
  std::string_view what = "is not finite";
  switch (job.tensor->dtype) {
    case DType::kF8E8M0:
      bad = FindBad<uint8_t>(job.bytes, [](uint8_t x) { return x == 255; });
      what = "is 255, NaN";
      break;
    case DType::kF8E4M3:
      bad = FindBad<uint8_t>(job.bytes, [](uint8_t x) { return (x & 0x7f) == 0x7f; });
      what = "is NaN";
      break;
    case DType::kBF16:
      bad = FindBad<uint16_t>(job.bytes, [](uint16_t x) { return (x & 0x7f80) == 0x7f80; });
      break;
    case DType::kF32:
      bad = FindBad<uint32_t>(job.bytes, [](uint32_t x) { return (x & 0x7f800000) == 0x7f800000; });
      break;
    case DType::kI64:
      // As unsigned numbers, so that negative ones are too large.
      bad = FindBad<uint64_t>(job.bytes,
                              [n = static_cast<uint64_t>(num_experts)](uint64_t x) { return x >= n; });
      what = "is no expert's number";
      break;
    case DType::kI8:
      break;  // every byte is two FP4 values
  }
  if (bad) problems->Add("tensor {}: value {} {}", job.tensor->name, Place(*job.tensor, *bad), what);
}

}  // namespace

void CheckValues(std::span<const BoundSlot> slots, const ModelConfig& config, const LoadOptions& options,
                 ProblemList* problems) {
  std::vector<Job> jobs;
  uint64_t bytes_total = 0;
  const auto add = [&](const TensorSpec& tensor, std::span<const std::byte> bytes) {
    jobs.push_back({&tensor, bytes});
    bytes_total += bytes.size();
  };
  for (const BoundSlot& bound : slots) {
    const WeightSlot& slot = *bound.slot;
    if (!bound.scales.empty()) add(*slot.scale, bound.scales);
    const bool is_matrix = std::holds_alternative<MatrixView*>(slot.target);
    if (bound.data.empty() || slot.tensor.dtype == DType::kI8) continue;
    if (options.checks == ValueChecks::kAll || !is_matrix) add(slot.tensor, bound.data);
  }
  // In the order of the bytes: the disk reads forward, and scales lie side by side in official shards.
  std::sort(jobs.begin(), jobs.end(),
            [](const Job& a, const Job& b) { return a.bytes.data() < b.bytes.data(); });
  constexpr size_t kAhead = 16;
  uint64_t bytes_done = 0;
  if (options.progress) options.progress->Begin("Checking weights", bytes_total);
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (i + kAhead < jobs.size()) AdviseWillNeed(jobs[i + kAhead].bytes);
    Check(jobs[i], config.n_routed_experts, problems);
    bytes_done += jobs[i].bytes.size();
    if (options.progress) options.progress->Update(bytes_done);
  }
  if (options.progress) options.progress->End();
}

}  // namespace foresight
