// From a model's files to its typed weights: everything is checked, nothing is copied that need not be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/status.h"
#include "weights/model_files.h"
#include "weights/model_weights.h"

namespace foresight {

// Which values are looked at. Reading all of them pages the whole model in.
enum class ValueChecks {
  kQuick,  // every E8M0 scale, the routing tables, and every F32 and BF16 vector (about 1/18 of the bytes)
  kAll,    // also NaN and infinity in every matrix
};

struct LoadOptions {
  ValueChecks checks = ValueChecks::kQuick;
  ProgressSink* progress = nullptr;  // borrowed; may be null
  // A draft head from another place, with a config.json of its own and nothing but mtp.* tensors (see
  // ModelFiles::Draft). Empty: the model's own head, if it has one.
  ModelFiles draft = {};
  // False: the model's own head is left alone, as it is when `draft` brings another one.
  bool own_draft = true;
};

struct LoadReport {
  uint64_t bytes = 0;                // stored bytes of the weights in use, scales included
  int64_t tensors = 0;               // stored tensors in use
  int files = 0;                     // safetensors files
  double seconds = 0;                // from the first file to the last check
  uint64_t copied_bytes = 0;         // tensors stored misaligned for their dtype, copied into own memory
  std::vector<std::string> ignored;  // tensors that this program has no use for, and known to be harmless

  // Two or three sentences for the start-up log.
  std::string ToString() const;
};

// A model in memory. Movable; the views of `weights` stay valid as long as the object (or the one that it was
// moved to) lives.
struct LoadedModel {
  ModelWeights weights;
  LoadReport report;

  // What the views point into.
  ModelFiles files;
  ModelFiles draft_files;  // as LoadOptions::draft
  std::vector<std::unique_ptr<std::byte[]>> copies;
  std::shared_ptr<const void> arena;  // synthetic models
};

// Reads config.json and the safetensors files (model.safetensors.index.json with its shards, or
// model.safetensors alone) in the official layout (model spec 3.1, dspark.md 6.1). Weights stay mapped and in
// their stored precision.
//
// Tensor sets, shapes, dtypes and values are held against the config; one error lists all that is wrong (50
// problems in full and the number of the rest). A tensor that the model has no place for is an error, but for
// the draft block's own copies of the embedding and the head (mtp.*emb*, mtp.*head.weight), which no release
// has and the reference skips: they are named in the report.
// The draft head is recognised by its tensors: mtp.0.e_proj is MTP-1, mtp.0.main_proj is DSpark, with as many
// stages as there are mtp.N blocks. Routed experts are MXFP4 when stored as I8, FP8 when stored as F8_E4M3.
//
// With `options.draft` the config must state the model's own shape again: whatever the head shares with it,
// or was trained with, is compared, and all differences are listed. The draft fields are taken from there.
//
// Errors: kNotFound (a file), kUnimplemented (another architecture), kInvalidArgument and kDataLoss (the
// rest).
Result<LoadedModel> LoadModel(const ModelFiles& files, const LoadOptions& options = {});

}  // namespace foresight
