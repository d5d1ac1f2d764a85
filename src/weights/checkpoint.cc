#include "weights/checkpoint.h"

#include <boost/json/object.hpp>
#include <map>
#include <utility>
#include <vector>

#include "base/json.h"

namespace foresight {
namespace {

namespace json = boost::json;

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";

// Official tensor name -> shard.
using WeightMap = std::unordered_map<std::string, std::string>;

std::string StripPrefix(std::string_view name) {
  constexpr std::string_view kPrefix = "model.";
  if (name.substr(0, kPrefix.size()) == kPrefix) name.remove_prefix(kPrefix.size());
  return std::string(name);
}

Result<WeightMap> ReadIndex(const ModelFiles& files, ProblemList* problems) {
  ASSIGN_OR_RETURN(const std::string_view text, files.FindText(kIndexName));
  Result<json::value> index = ParseJson(text);
  if (!index.ok()) return index.error().WithContext(kIndexName);
  const json::object* object = index->if_object();
  const json::value* field = object ? object->if_contains("weight_map") : nullptr;
  if (field == nullptr || !field->is_object()) {
    return InvalidArgument("{}: want an object with an object \"weight_map\"", kIndexName);
  }
  WeightMap map;
  map.reserve(field->get_object().size());
  for (const json::key_value_pair& pair : field->get_object()) {
    const std::string_view name(pair.key().data(), pair.key().size());
    const json::string* shard = pair.value().if_string();
    if (shard == nullptr) {
      problems->Add("{}: tensor {}: want a file name, got {}", kIndexName, name, JsonKindName(pair.value()));
      continue;
    }
    if (!map.emplace(StripPrefix(name), std::string(shard->data(), shard->size())).second) {
      problems->Add("{}: tensor {} is listed with and without \"model.\"", kIndexName, StripPrefix(name));
    }
  }
  if (map.empty() && problems->empty()) problems->Add("{}: weight_map is empty", kIndexName);
  return map;
}

void ReadShard(const ModelFiles& files, const std::string& name, Checkpoint* checkpoint,
               ProblemList* problems) {
  const auto bytes = files.Find(name);
  if (!bytes.ok()) return problems->Add(bytes.error());
  auto tensors = ParseSafetensors(*bytes);
  if (!tensors.ok()) return problems->Add(tensors.error().WithContext(name));
  ++checkpoint->num_files;
  for (StoredTensor& tensor : *tensors) {
    std::string official = StripPrefix(tensor.name);
    const auto [it, is_new] = checkpoint->tensors.try_emplace(std::move(official));
    if (!is_new) {
      problems->Add("tensor {}: is in {} and in {}", it->first, it->second.file, name);
      continue;
    }
    it->second.stored = std::move(tensor);
    it->second.file = name;
  }
}

// The index and the shards say the same.
void CompareWithIndex(const WeightMap& map, const Checkpoint& checkpoint, ProblemList* problems) {
  for (const auto& [name, shard] : std::map<std::string, std::string>(map.begin(), map.end())) {
    const auto it = checkpoint.tensors.find(name);
    if (it == checkpoint.tensors.end()) {
      problems->Add("tensor {}: is not in {}, where {} has it", name, shard, kIndexName);
    } else if (it->second.file != shard) {
      problems->Add("tensor {}: is in {}, but {} has it in {}", name, it->second.file, kIndexName, shard);
    }
  }
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (!map.contains(name))
      problems->Add("tensor {}: is in {}, but not in {}", name, tensor.file, kIndexName);
  }
}

}  // namespace

Result<Checkpoint> ReadCheckpoint(const ModelFiles& files, ProblemList* problems) {
  Checkpoint checkpoint;
  if (!files.Contains(kIndexName)) {
    if (!files.Contains(kSingleName)) {
      return NotFound("{}: there is neither {} nor {}: no weights", files.origin(), kIndexName, kSingleName);
    }
    ReadShard(files, std::string(kSingleName), &checkpoint, problems);
    return checkpoint;
  }
  ASSIGN_OR_RETURN(const WeightMap map, ReadIndex(files, problems));
  std::map<std::string, int64_t> shards;
  for (const auto& [name, shard] : map) ++shards[shard];
  checkpoint.tensors.reserve(map.size());
  const size_t problems_before = problems->count();
  for (const auto& [shard, num_tensors] : shards) ReadShard(files, shard, &checkpoint, problems);
  // A shard that can't be read is one problem, not one for each of its tensors.
  if (problems->count() == problems_before) CompareWithIndex(map, checkpoint, problems);
  return checkpoint;
}

}  // namespace foresight
