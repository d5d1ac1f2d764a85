#include "verify/golden.h"

#include <cstring>

namespace foresight {

Result<Golden> Golden::Open(const ModelFiles& files) {
  ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, files.Find("golden.safetensors"));
  ASSIGN_OR_RETURN(std::vector<StoredTensor> tensors, ParseSafetensors(bytes));
  Golden golden;
  for (StoredTensor& t : tensors) {
    std::string name = t.name;
    golden.tensors_.emplace(std::move(name), std::move(t));
  }
  return golden;
}

std::vector<std::string> Golden::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

void Golden::KeepRows(const std::string& name, int64_t rows) {
  const auto it = tensors_.find(name);
  if (it == tensors_.end() || it->second.shape.empty() || it->second.shape[0] <= rows) return;
  StoredTensor& t = it->second;
  t.bytes = t.bytes.first(t.bytes.size() / static_cast<size_t>(t.shape[0]) * static_cast<size_t>(rows));
  t.shape[0] = rows;
}

Result<const StoredTensor*> Golden::Find(const std::string& name, DType dtype, size_t rank) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return NotFound("golden.safetensors has no tensor {}", name);
  if (it->second.dtype != dtype || it->second.shape.size() != rank) {
    return InvalidArgument("golden.safetensors: {}: want {} of rank {}, got {} {}", name, DTypeName(dtype),
                           rank, DTypeName(it->second.dtype), ShapeToString(it->second.shape));
  }
  return &it->second;
}

Result<std::vector<float>> Golden::Floats(const std::string& name, size_t rank) const {
  ASSIGN_OR_RETURN(const StoredTensor* t, Find(name, DType::kF32, rank));
  std::vector<float> values(t->bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), t->bytes.data(), t->bytes.size());
  return values;
}

Result<std::vector<int64_t>> Golden::Integers(const std::string& name, size_t rank) const {
  ASSIGN_OR_RETURN(const StoredTensor* t, Find(name, DType::kI64, rank));
  std::vector<int64_t> values(t->bytes.size() / sizeof(int64_t));
  if (!values.empty()) std::memcpy(values.data(), t->bytes.data(), t->bytes.size());
  return values;
}

}  // namespace foresight
