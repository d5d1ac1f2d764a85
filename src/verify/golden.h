// A golden file: what an oracle computed for a checkpoint (tests/golden/README.md lists the tensors).
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "weights/model_files.h"
#include "weights/safetensors.h"

namespace foresight {

class Golden {
 public:
  // Reads golden.safetensors of a model directory. The files outlive the object.
  static Result<Golden> Open(const ModelFiles& files);

  bool Contains(const std::string& name) const { return tensors_.count(name) != 0; }
  std::vector<std::string> Names() const;
  // The values of a tensor of the given rank. Errors: kNotFound; kInvalidArgument (dtype, rank).
  Result<std::vector<float>> Floats(const std::string& name, size_t rank) const;
  Result<std::vector<int64_t>> Integers(const std::string& name, size_t rank) const;
  // The shape of a tensor that is there.
  const std::vector<int64_t>& Shape(const std::string& name) const { return tensors_.at(name).shape; }
  // Drops the rows of a tensor from row `rows` on, if it is there and has them.
  void KeepRows(const std::string& name, int64_t rows);

 private:
  Result<const StoredTensor*> Find(const std::string& name, DType dtype, size_t rank) const;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace foresight
