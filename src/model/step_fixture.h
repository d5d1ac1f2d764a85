// A small random model on one of the backends, with a cache, for tests of whole steps.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device/device_apart.h"
#include "kernels/backend.h"
#include "kv_cache/sequence_state.h"
#include "model/placement.h"
#include "weights/synthetic.h"

namespace foresight {

template <typename Param>
class StepTest : public testing::TestWithParam<Param> {
 protected:
  static constexpr int kRowsMax = 96;  // of a step, unless told otherwise

  // `device`: "cuda", or "apart", the machine's memory as a device of its own. Skips what isn't here.
  void Open(const std::string& device, const std::string& table) {
    const bool apart = device == "apart";
    Result<Backend> backend = OpenBackend(apart ? "cpu" : device, table);
    if (!backend.ok()) GTEST_SKIP() << backend.status().ToString();
    backend_ = std::move(*backend);
    if (apart) backend_.device = std::make_unique<DeviceApart>();
  }

  void MakeModel(const ModelConfig& config, Numerics numerics, int max_sequences, int rows_max = kRowsMax) {
    made_ = std::make_unique<LoadedModel>(MakeSyntheticModel(config));
    ModelOptions options{.numerics = numerics, .max_step_rows = rows_max};
    Result<Placement> placement = PlaceModel(made_->weights, *backend_.device, options);
    ASSERT_TRUE(placement.ok()) << placement.status().ToString();
    placement_ = std::move(*placement);
    model_ = std::make_unique<Model>(placement_.weights->weights, *backend_.kernels, pool_, options);
    Result<std::unique_ptr<KvCache>> cache =
        KvCache::Create(model_->cache_layout(), {.device = backend_.device.get(),
                                                 .budget_bytes = int64_t{1} << 28,
                                                 .max_sequences = max_sequences,
                                                 .max_sequence_tokens = 4096});
    ASSERT_TRUE(cache.ok()) << cache.status().ToString();
    cache_ = std::move(*cache);
  }

  std::vector<SequenceState> NewSequences(int count) {
    std::vector<SequenceState> sequences;
    for (int i = 0; i < count; ++i) {
      Result<SequenceState> sequence = cache_->NewSequence();
      CHECK(sequence.ok(), "{}", sequence.status().ToString());
      sequences.push_back(std::move(*sequence));
    }
    return sequences;
  }

  Backend backend_;
  std::unique_ptr<LoadedModel> made_;
  Placement placement_;
  ThreadPool pool_{2};
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> cache_;
};

}  // namespace foresight
