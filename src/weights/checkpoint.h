// The stored tensors of a model's files by name, before anybody asks what they mean.
#pragma once

#include <string>
#include <unordered_map>

#include "base/status.h"
#include "weights/model_files.h"
#include "weights/problems.h"
#include "weights/safetensors.h"

namespace foresight {

struct CheckpointTensor {
  StoredTensor stored;
  std::string file;
  bool is_used = false;
};

struct Checkpoint {
  // By official name: a leading "model." is stripped.
  std::unordered_map<std::string, CheckpointTensor> tensors;
  int num_files = 0;
};

// Reads the headers of model.safetensors.index.json's shards, or of model.safetensors where there is no
// index. What is wrong goes to `problems`, and the rest is read all the same: a missing or damaged shard, two
// tensors of one name, an index that disagrees with the shards. No weights at all is an error (kNotFound).
Result<Checkpoint> ReadCheckpoint(const ModelFiles& files, ProblemList* problems);

}  // namespace foresight
