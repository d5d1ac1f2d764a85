#include "weights/synthetic.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "base/thread_pool.h"
#include "weights/layout.h"

namespace foresight {
namespace {

// Counter-based randomness: value i of a stream depends on (stream, i) alone, so that threads can fill any
// piece (the mixing steps of splitmix64).
uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
uint64_t RandomAt(uint64_t stream, uint64_t i) {
  return Mix(stream + i * 0x9e3779b97f4a7c15);
}
double UniformAt(uint64_t stream, uint64_t i) {  // in (0, 1)
  return (static_cast<double>(RandomAt(stream, i) >> 12) + 0.5) * 0x1p-52;
}
float NormalAt(uint64_t stream, uint64_t i) {
  const double radius = std::sqrt(-2 * std::log(UniformAt(stream, 2 * i)));
  return static_cast<float>(radius * std::cos(2 * M_PI * UniformAt(stream, 2 * i + 1)));
}

// The point below which a standard normal variable lies with probability p.
double NormalQuantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double mid = (low + high) / 2;
    (0.5 * std::erfc(-mid * M_SQRT1_2) < p ? low : high) = mid;
  }
  return low;
}

// A random byte becomes a code by table look-up: the codes of 256 (or 16) quantiles of a normal distribution.
using CodeTable = std::array<uint8_t, 256>;

constexpr float kFp8Deviation = 16;  // e4m3: 1/16 of a deviation is still far above the subnormals
CodeTable MakeFp8Codes() {
  CodeTable table;
  for (int i = 0; i < 256; ++i) {
    table[static_cast<size_t>(i)] =
        FloatToE4M3(kFp8Deviation * static_cast<float>(NormalQuantile((i + 0.5) / 256)));
  }
  return table;
}

constexpr float kFp4Deviation = 2;  // e2m1: the outermost of 16 quantiles falls on 4
CodeTable MakeFp4Codes() {
  std::array<uint8_t, 16> nibbles;
  for (int i = 0; i < 16; ++i) {
    nibbles[static_cast<size_t>(i)] =
        FloatToE2M1(kFp4Deviation * static_cast<float>(NormalQuantile((i + 0.5) / 16)));
  }
  CodeTable table;
  for (size_t i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(nibbles[i & 15] | nibbles[i >> 4] << 4);
  return table;
}

// Bytes of `out` from random bytes by way of `table`.
void FillCodes(const CodeTable& table, uint64_t stream, uint64_t begin, std::span<std::byte> out) {
  for (size_t i = 0; i < out.size(); i += 8) {
    uint64_t random = RandomAt(stream, (begin + i) / 8);
    uint64_t codes = 0;
    for (int shift = 0; shift < 64; shift += 8) {
      codes |= static_cast<uint64_t>(table[(random >> shift) & 255]) << shift;
    }
    std::memcpy(out.data() + i, &codes, std::min<size_t>(8, out.size() - i));
  }
}

// BF16 values from random bytes by way of a table of 256 quantiles: as fast as memory takes them.
void FillBf16(const std::array<bf16, 256>& table, uint64_t stream, uint64_t begin, std::span<std::byte> out) {
  for (size_t i = 0; i < out.size(); i += 16) {
    const uint64_t random = RandomAt(stream, (begin + i) / 16);
    std::array<bf16, 8> values;
    for (size_t k = 0; k < 8; ++k) values[k] = table[(random >> (8 * k)) & 255];
    std::memcpy(out.data() + i, values.data(), std::min<size_t>(16, out.size() - i));
  }
}

// Everything a thread needs to fill any piece of one weight.
class WeightFiller {
 public:
  WeightFiller(const ModelConfig& config, uint64_t seed, size_t slot_index, const WeightSlot& slot)
      : config_(config), slot_(slot), stream_(Mix(seed * 0xd1342543de82ef95 + slot_index + 1)) {
    // Products of unit-size inputs are of unit size; logits a little larger, so that one token stands out.
    const TensorSpec& tensor = slot.tensor;
    const double cols = static_cast<double>(tensor.shape.back() * (tensor.dtype == DType::kI8 ? 2 : 1));
    deviation_ = 1 / std::sqrt(cols);
    if (slot.role == WeightRole::kEmbedding) deviation_ = 1;
    if (slot.role == WeightRole::kHead) deviation_ *= 3;
    for (size_t i = 0; tensor.dtype == DType::kBF16 && i < 256; ++i) {
      bf16_table_[i] =
          FloatToBf16(static_cast<float>(deviation_ * NormalQuantile((static_cast<double>(i) + 0.5) / 256)));
    }
  }

  // Bytes [begin, begin + out.size()) of the tensor; begin is a multiple of 64.
  void FillData(const CodeTable& fp8, const CodeTable& fp4, uint64_t begin, std::span<std::byte> out) const {
    switch (slot_.tensor.dtype) {
      case DType::kF8E4M3:
        return FillCodes(fp8, stream_, begin, out);
      case DType::kI8:
        return FillCodes(fp4, stream_, begin, out);
      case DType::kBF16:
        if (slot_.role != WeightRole::kNorm) return FillBf16(bf16_table_, stream_, begin, out);
        return FillValues<bf16>(begin, out,
                                [&](uint64_t i) { return FloatToBf16(1 + 0.1f * NormalAt(stream_, i)); });
      case DType::kF32:
        return FillValues<float>(begin, out, [&](uint64_t i) { return F32At(i); });
      case DType::kI64:
        return FillValues<int64_t>(begin, out, [&](uint64_t i) { return ExpertAt(i); });
      case DType::kF8E8M0:
        break;
    }
    CHECK(false, "no weight is stored as {}", DTypeName(slot_.tensor.dtype));
  }

  void FillScales(uint64_t begin, std::span<std::byte> out) const {
    const float code_deviation = slot_.tensor.dtype == DType::kI8 ? kFp4Deviation : kFp8Deviation;
    // Exponents -1, 0 and +1 about the wanted one, so that a scale taken from a neighbour shows.
    const int centre = 127 + static_cast<int>(std::lround(std::log2(deviation_ / code_deviation)));
    for (size_t i = 0; i < out.size(); ++i) {
      const int jitter = static_cast<int>(RandomAt(~stream_, begin + i) % 3) - 1;
      out[i] = static_cast<std::byte>(std::clamp(centre + jitter, 0, 254));
    }
  }

 private:
  template <typename T, typename At>
  static void FillValues(uint64_t begin, std::span<std::byte> out, At at) {
    for (size_t offset = 0; offset < out.size(); offset += sizeof(T)) {
      const T value = at((begin + offset) / sizeof(T));
      std::memcpy(out.data() + offset, &value, sizeof(T));
    }
  }

  float F32At(uint64_t i) const {
    const float normal = NormalAt(stream_, i);
    switch (slot_.role) {
      case WeightRole::kApe:
        return 0.5f * normal;
      case WeightRole::kHcFn:
        return static_cast<float>(deviation_) * normal;
      case WeightRole::kHcScale:
        return 1 + 0.1f * normal;
      case WeightRole::kRoutingBias:
        return 0.3f * normal;
      default:  // sinks, mHC base
        return normal;
    }
  }

  // Row i / K has K different experts: a random first one and a random step without a common divisor with E
  // would do for prime E; drawing without repetition does for all.
  int64_t ExpertAt(uint64_t i) const {
    const uint64_t k = static_cast<uint64_t>(config_.num_experts_per_tok);
    const uint64_t row = i / k;
    std::vector<int64_t> drawn;
    for (uint64_t draw = 0; drawn.size() <= i % k; ++draw) {
      const int64_t expert = static_cast<int64_t>(RandomAt(stream_ + row * 0x2545f4914f6cdd1d, draw) %
                                                  static_cast<uint64_t>(config_.n_routed_experts));
      if (std::find(drawn.begin(), drawn.end(), expert) == drawn.end()) drawn.push_back(expert);
    }
    return drawn.back();
  }

  const ModelConfig& config_;
  const WeightSlot& slot_;
  uint64_t stream_;
  double deviation_ = 1;
  std::array<bf16, 256> bf16_table_ = {};
};

// Zero pages of the system, large ones where it has them.
class AnonymousMemory {
 public:
  explicit AnonymousMemory(size_t bytes) : bytes_(std::max<size_t>(bytes, 1)) {
    data_ =
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(data_ != MAP_FAILED, "no address space for a synthetic model of {} bytes", bytes_);
    ::madvise(data_, bytes_, MADV_HUGEPAGE);
  }
  ~AnonymousMemory() { ::munmap(data_, bytes_); }
  AnonymousMemory(const AnonymousMemory&) = delete;
  AnonymousMemory& operator=(const AnonymousMemory&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  size_t bytes_;
  void* data_;
};

// A piece of the fill: part of a weight's data, or all its scales.
struct Piece {
  size_t slot;
  bool is_scale;
  uint64_t begin;
  std::span<std::byte> out;
};

}  // namespace

LoadedModel MakeSyntheticModel(const ModelConfig& config, const SyntheticOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  LoadedModel model;
  const LayoutOptions layout = LayoutFromConfig(config, options.expert_dtype);
  const std::vector<WeightSlot> slots = LayOutWeights(config, layout, &model.weights);
  model.weights.config.num_draft_layers = layout.num_draft_blocks;

  constexpr uint64_t kAlign = 64;
  constexpr uint64_t kPieceBytes = 1 << 20;
  const auto padded = [](uint64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; };
  uint64_t total = 0;
  for (const WeightSlot& slot : slots) {
    total += padded(slot.tensor.bytes()) + (slot.scale ? padded(slot.scale->bytes()) : 0);
  }
  const auto memory = std::make_shared<AnonymousMemory>(total);
  std::vector<WeightFiller> fillers;
  fillers.reserve(slots.size());
  std::vector<Piece> pieces;
  std::byte* next = memory->data();
  const auto place = [&](size_t slot, bool is_scale, uint64_t bytes) {
    std::byte* data = next;
    next += padded(bytes);
    for (uint64_t begin = 0; begin < bytes; begin += kPieceBytes) {
      pieces.push_back({slot, is_scale, begin, {data + begin, std::min(kPieceBytes, bytes - begin)}});
    }
    model.report.bytes += bytes;
    model.report.tensors += 1;
    return data;
  };
  for (size_t i = 0; i < slots.size(); ++i) {
    const WeightSlot& slot = slots[i];
    fillers.emplace_back(config, options.seed, i, slot);
    const std::byte* data = place(i, /*is_scale=*/false, slot.tensor.bytes());
    const std::byte* scales = slot.scale ? place(i, /*is_scale=*/true, slot.scale->bytes()) : nullptr;
    slot.Bind(data, scales);
  }

  const CodeTable fp8 = MakeFp8Codes();
  const CodeTable fp4 = MakeFp4Codes();
  ThreadPool pool(options.num_threads > 0 ? options.num_threads : NumProcessors());
  pool.ParallelFor(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    const WeightFiller& filler = fillers[piece.slot];
    if (piece.is_scale) {
      filler.FillScales(piece.begin, piece.out);
    } else {
      filler.FillData(fp8, fp4, piece.begin, piece.out);
    }
  });
  model.arena = memory;
  model.report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return model;
}

}  // namespace foresight
