#include "weights/layout.h"

#include <gtest/gtest.h>

#include <map>

#include "weights/synthetic.h"

namespace foresight {
namespace {

struct Totals {
  int64_t tensors = 0;
  uint64_t bytes = 0;
  std::map<DType, int64_t> by_dtype;
  std::map<std::string, int64_t> by_block;  // "layers.2" or "mtp.0", "" for the globals
};

Totals Count(const ModelConfig& config) {
  ModelWeights weights;
  Totals totals;
  const auto add = [&](const TensorSpec& spec) {
    ++totals.tensors;
    totals.bytes += spec.bytes();
    ++totals.by_dtype[spec.dtype];
    const bool is_block = spec.name.rfind("layers.", 0) == 0 || spec.name.rfind("mtp.", 0) == 0;
    ++totals.by_block[is_block ? spec.name.substr(0, spec.name.find('.', spec.name.find('.') + 1)) : ""];
  };
  for (const WeightSlot& slot : LayOutWeights(config, LayoutFromConfig(config), &weights)) {
    add(slot.tensor);
    if (slot.scale) add(*slot.scale);
  }
  return totals;
}

// The published numbers (model spec 3.1).
TEST(Layout, HasTheReleasedNumbersOfFlash) {
  ModelConfig config = FlashConfig();
  config.num_draft_layers = 1;
  const Totals totals = Count(config);
  EXPECT_EQ(totals.tensors, 69'187);
  EXPECT_EQ(totals.bytes, 159'609'485'896u);
  EXPECT_EQ(totals.by_dtype, (std::map<DType, int64_t>{{DType::kF32, 417},
                                                       {DType::kBF16, 433},
                                                       {DType::kF8E4M3, 375},
                                                       {DType::kF8E8M0, 34'167},
                                                       {DType::kI8, 33'792},
                                                       {DType::kI64, 3}}));
  EXPECT_EQ(totals.by_block.at(""), 6);
  EXPECT_EQ(totals.by_block.at("layers.0"), 1565);
  EXPECT_EQ(totals.by_block.at("layers.2"), 1576);
  EXPECT_EQ(totals.by_block.at("layers.3"), 1569);
  EXPECT_EQ(totals.by_block.at("mtp.0"), 1575);
}

TEST(Layout, HasTheReleasedNumbersOfPro) {
  ModelConfig config = ProConfig();
  config.num_draft_layers = 1;
  const Totals totals = Count(config);
  EXPECT_EQ(totals.tensors, 145'116);
  EXPECT_EQ(totals.bytes, 864'704'792'696u);
  EXPECT_EQ(totals.by_block.at("layers.2"), 2344);
  EXPECT_EQ(totals.by_block.at("layers.3"), 2337);
  EXPECT_EQ(totals.by_block.at("mtp.0"), 2343);
}

// dspark.md 6.1.
TEST(Layout, HasTheReleasedNumbersOfTheDraftHead) {
  ModelConfig config = FlashConfig();
  const Totals without = Count(config);
  config.num_draft_layers = 3;
  config.dspark = {5, 128799, {40, 41, 42}, 256};
  const Totals with = Count(config);
  EXPECT_EQ(with.tensors - without.tensors, 4'705);
  EXPECT_EQ(with.tensors, 72'317);
  EXPECT_NEAR(static_cast<double>(with.bytes - without.bytes), 10.863e9, 0.001e9);
  EXPECT_EQ(with.by_dtype.at(DType::kI8) - without.by_dtype.at(DType::kI8), 2304);
  EXPECT_EQ(with.by_dtype.at(DType::kF8E8M0) - without.by_dtype.at(DType::kF8E8M0), 2329);
  EXPECT_EQ(with.by_dtype.at(DType::kF8E4M3) - without.by_dtype.at(DType::kF8E4M3), 25);
  EXPECT_EQ(with.by_dtype.at(DType::kBF16) - without.by_dtype.at(DType::kBF16), 20);
  EXPECT_EQ(with.by_dtype.at(DType::kF32) - without.by_dtype.at(DType::kF32), 27);
}

TEST(Layout, ListsTheSlotsOfWeightsThatAreThere) {
  LoadedModel model = MakeSyntheticModel(TinyAConfig());
  for (const WeightSlot& slot : ListWeights(&model.weights)) {
    EXPECT_NE(slot.data(), nullptr) << slot.tensor.name;
    EXPECT_EQ(slot.scales() != nullptr, slot.scale.has_value()) << slot.tensor.name;
  }
}

}  // namespace
}  // namespace foresight
