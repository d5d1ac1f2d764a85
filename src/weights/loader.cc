#include "weights/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <optional>

#include "base/units.h"
#include "weights/checkpoint.h"
#include "weights/compare_shapes.h"
#include "weights/layout.h"
#include "weights/value_checks.h"

namespace foresight {
namespace {

constexpr int kDraftBlocksMax = 16;  // as many as a config may have entries for

// "mtp.12.attn_norm.weight" -> 12.
std::optional<int> DraftBlockIndex(std::string_view name) {
  constexpr std::string_view kPrefix = "mtp.";
  if (name.substr(0, kPrefix.size()) != kPrefix) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  int index = 0;
  size_t digits = 0;
  for (; digits < name.size() && digits < 4 && name[digits] >= '0' && name[digits] <= '9'; ++digits) {
    index = index * 10 + (name[digits] - '0');
  }
  if (digits == 0 || digits == name.size() || name[digits] != '.') return std::nullopt;
  return index;
}

// The draft block's own embedding or head: the reference skips them, no release has them.
bool IsHarmlessLeftover(std::string_view name) {
  if (!DraftBlockIndex(name)) return false;
  constexpr std::string_view kHead = "head.weight";
  return name.find("emb") != std::string_view::npos ||
         (name.size() >= kHead.size() && name.substr(name.size() - kHead.size()) == kHead);
}

class Loader {
 public:
  Loader(const ModelFiles& files, const LoadOptions& options) : options_(options) { model_.files = files; }

  Result<LoadedModel> Run() {
    const auto start = std::chrono::steady_clock::now();
    const std::string& origin = model_.files.origin();
    ASSIGN_OR_RETURN(const std::string_view text, model_.files.FindText("config.json"));
    Result<ModelConfig> config = ParseModelConfig(text);
    if (!config.ok()) return config.error().WithContext(origin);
    ASSIGN_OR_RETURN(checkpoint_, ReadCheckpoint(model_.files, &problems_));
    if (!options_.own_draft || !options_.draft.empty()) LeaveOwnDraft();
    if (!options_.draft.empty()) RETURN_IF_ERROR(AddDraft(&*config));
    // A shard that can't be read makes hundreds of tensors seem to be missing: say only why.
    RETURN_IF_ERROR(problems_.ToStatus(origin));

    const LayoutOptions layout = RecogniseDraftHead(&*config);
    slots_ = LayOutWeights(*config, layout, &model_.weights);
    for (const WeightSlot& slot : slots_) RETURN_IF_ERROR(Bind(slot));
    NameLeftovers(layout.draft == DraftHead::kNone);
    CheckValues(bound_, *config, options_, &problems_);
    RETURN_IF_ERROR(problems_.ToStatus(origin));

    model_.report.files = checkpoint_.num_files;
    model_.report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(model_);
  }

 private:
  const CheckpointTensor* Find(const std::string& name) const {
    const auto it = checkpoint_.tensors.find(name);
    return it == checkpoint_.tensors.end() ? nullptr : &it->second;
  }

  void LeaveOwnDraft() {
    const size_t count =
        std::erase_if(checkpoint_.tensors, [](const auto& item) { return item.first.starts_with("mtp."); });
    if (count > 0) {
      model_.report.ignored.push_back(fmt::format("mtp.* (the model's own draft head, {} tensors)", count));
    }
  }

  // Takes tensors and draft fields from `options_.draft`.
  Status AddDraft(ModelConfig* config) {
    model_.draft_files = options_.draft;
    const std::string& origin = model_.draft_files.origin();
    ASSIGN_OR_RETURN(const std::string_view text, model_.draft_files.FindText("config.json"));
    Result<ModelConfig> draft_config = ParseModelConfig(text);
    if (!draft_config.ok()) return draft_config.error().WithContext(origin);
    ProblemList problems;
    CompareShapes(*config, *draft_config, &problems);
    RETURN_IF_ERROR(
        problems.ToStatus(fmt::format("{} is of another model than {}", origin, model_.files.origin())));
    config->dspark = draft_config->dspark;
    config->num_draft_layers = draft_config->num_draft_layers;
    config->num_nextn_predict_layers = draft_config->num_nextn_predict_layers;

    ASSIGN_OR_RETURN(Checkpoint draft, ReadCheckpoint(model_.draft_files, &problems));
    for (auto& [name, tensor] : draft.tensors) {
      if (!name.starts_with("mtp.")) {
        problems.Add("tensor {}: a draft head has tensors mtp.* alone", name);
        continue;
      }
      tensor.file = fmt::format("{}/{}", origin, tensor.file);
      checkpoint_.tensors.emplace(name, std::move(tensor));
    }
    checkpoint_.num_files += draft.num_files;
    if (draft.tensors.empty()) problems.Add("there are no tensors");
    return problems.ToStatus(origin);
  }

  // Decides by the tensors (model spec 1.6, dspark.md 6.1) and makes the config say what is there.
  LayoutOptions RecogniseDraftHead(ModelConfig* config) {
    int num_blocks = 0;
    for (const auto& [name, tensor] : checkpoint_.tensors) {
      const std::optional<int> index = DraftBlockIndex(name);
      if (index && !IsHarmlessLeftover(name)) num_blocks = std::max(num_blocks, *index + 1);
    }
    const bool has_mtp1 = Find("mtp.0.e_proj.weight") != nullptr;
    const bool has_dspark = Find("mtp.0.main_proj.weight") != nullptr;
    LayoutOptions layout;
    if (has_mtp1 && has_dspark) {
      problems_.Add("mtp.0 has e_proj (MTP-1) and main_proj (DSpark): a draft head is one or the other");
    } else if (has_mtp1) {
      layout.draft = DraftHead::kMtp1;
      layout.num_draft_blocks = 1;
      if (config->has_dspark()) {
        problems_.Add(
            "config.json describes a DSpark draft head (dspark_block_size), but mtp.0 is MTP-1 (e_proj)");
      }
    } else if (has_dspark) {
      layout.draft = DraftHead::kDSpark;
      layout.num_draft_blocks = num_blocks;
      if (!config->has_dspark()) {
        problems_.Add("mtp.0 is a DSpark draft head (main_proj), but config.json has no dspark_block_size");
      }
    } else if (num_blocks > 0) {
      problems_.Add(
          "mtp.*: there is neither mtp.0.e_proj.weight (MTP-1) nor mtp.0.main_proj.weight (DSpark)");
    }
    if (layout.draft != DraftHead::kNone && config->num_draft_layers != 0 &&
        config->num_draft_layers != layout.num_draft_blocks) {
      problems_.Add("compress_ratios has {} entries for draft blocks, but the {} head has {}",
                    config->num_draft_layers, DraftHeadName(layout.draft), layout.num_draft_blocks);
    }
    if (layout.num_draft_blocks >
        kDraftBlocksMax) {  // a stray name must not make a thousand blocks be looked for
      problems_.Add("mtp.{}: more draft blocks than any release has", layout.num_draft_blocks - 1);
      layout.num_draft_blocks = 1;
    }
    config->num_draft_layers = layout.num_draft_blocks;
    if (layout.draft != DraftHead::kDSpark) config->dspark = DSparkConfig();
    if (config->has_dspark()) RecogniseSequentialHead(&config->dspark, &layout);

    const auto expert_dtype = [&](const std::string& block) {
      const CheckpointTensor* tensor = Find(block + "ffn.experts.0.w1.weight");
      return tensor && tensor->stored.dtype == DType::kF8E4M3 ? DType::kF8E4M3 : DType::kI8;
    };
    for (int i = 0; i < config->num_hidden_layers; ++i) {
      layout.expert_dtypes.push_back(expert_dtype(fmt::format("layers.{}.", i)));
    }
    for (int i = 0; i < layout.num_draft_blocks; ++i) {
      layout.expert_dtypes.push_back(expert_dtype(fmt::format("mtp.{}.", i)));
    }
    return layout;
  }

  void RecogniseSequentialHead(DSparkConfig* dspark, LayoutOptions* layout) {
    const std::string last = fmt::format("mtp.{}.", layout->num_draft_blocks - 1);
    if (dspark->markov_rank == DSparkConfig::kRankOfTensors) {
      const CheckpointTensor* w1 = Find(last + "markov_head.markov_w1.weight");
      const bool has_rank = w1 != nullptr && w1->stored.shape.size() == 2;
      // A shape that is no rank at all gets its message from the table.
      dspark->markov_rank =
          has_rank ? static_cast<int>(std::clamp<int64_t>(w1->stored.shape[1], 0, 1 << 16)) : 0;
    }
    layout->has_confidence = dspark->markov_rank > 0 || Find(last + "confidence_head.proj.weight") != nullptr;
  }

  // The bytes of a tensor as the table wants it, aligned; empty after a problem.
  Result<std::span<const std::byte>> Take(const TensorSpec& want) {
    const auto it = checkpoint_.tensors.find(want.name);
    if (it == checkpoint_.tensors.end()) {
      problems_.Add("tensor {}: is missing; want {} {}", want.name, DTypeName(want.dtype),
                    ShapeToString(want.shape));
      return std::span<const std::byte>();
    }
    CheckpointTensor& found = it->second;
    found.is_used = true;
    if (found.stored.dtype != want.dtype || found.stored.shape != want.shape) {
      problems_.Add("tensor {}: want {} {}, got {} {} (in {})", want.name, DTypeName(want.dtype),
                    ShapeToString(want.shape), DTypeName(found.stored.dtype),
                    ShapeToString(found.stored.shape), found.file);
      return std::span<const std::byte>();
    }
    const std::span<const std::byte> bytes = found.stored.bytes;
    model_.report.bytes += bytes.size();
    model_.report.tensors += 1;
    if (reinterpret_cast<uintptr_t>(bytes.data()) % DTypeBytes(want.dtype) == 0) return bytes;
    std::unique_ptr<std::byte[]> copy(new (std::nothrow) std::byte[bytes.size()]);
    if (copy == nullptr) {
      return ResourceExhausted("no memory for an aligned copy of tensor {} ({})", want.name,
                               FormatBytes(bytes.size()));
    }
    std::memcpy(copy.get(), bytes.data(), bytes.size());
    model_.report.copied_bytes += bytes.size();
    model_.copies.push_back(std::move(copy));
    return std::span<const std::byte>(model_.copies.back().get(), bytes.size());
  }

  Status Bind(const WeightSlot& slot) {
    BoundSlot bound{&slot, {}, {}};
    ASSIGN_OR_RETURN(bound.data, Take(slot.tensor));
    if (slot.scale) {
      ASSIGN_OR_RETURN(bound.scales, Take(*slot.scale));
    }
    slot.Bind(bound.data.data(), bound.scales.data());
    bound_.push_back(bound);
    return Status();
  }

  void NameLeftovers(bool has_no_draft) {
    std::vector<std::string_view> leftovers;
    for (const auto& [name, tensor] : checkpoint_.tensors) {
      if (tensor.is_used) continue;
      if (IsHarmlessLeftover(name)) {
        model_.report.ignored.push_back(name);
      } else if (!has_no_draft || !DraftBlockIndex(name)) {  // else the whole draft head is one problem
        leftovers.push_back(name);
      }
    }
    std::sort(model_.report.ignored.begin(), model_.report.ignored.end());
    std::sort(leftovers.begin(), leftovers.end());
    for (const std::string_view name : leftovers)
      problems_.Add("tensor {}: the model has no place for it", name);
  }

  const LoadOptions& options_;
  LoadedModel model_;
  ProblemList problems_;
  Checkpoint checkpoint_;
  std::vector<WeightSlot> slots_;
  std::vector<BoundSlot> bound_;
};

}  // namespace

std::string LoadReport::ToString() const {
  std::string text =
      fmt::format("{} in {} tensors of {} file{}, checked in {:.2f} s.", FormatBytes(bytes),
                  FormatCount(static_cast<uint64_t>(tensors)), files, files == 1 ? "" : "s", seconds);
  if (copied_bytes > 0)
    text += fmt::format(" {} were stored misaligned and are copied.", FormatBytes(copied_bytes));
  if (!ignored.empty()) {
    text += fmt::format(" Ignored: {}", ignored[0]);
    for (size_t i = 1; i < std::min<size_t>(ignored.size(), 5); ++i) text += ", " + ignored[i];
    text += ignored.size() > 5 ? fmt::format(" and {} more.", ignored.size() - 5) : ".";
  }
  return text;
}

Result<LoadedModel> LoadModel(const ModelFiles& files, const LoadOptions& options) {
  return Loader(files, options).Run();
}

}  // namespace foresight
