#include "weights/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

std::vector<int> Ratios(const ModelConfig& c) {
  std::vector<int> ratios;
  for (const LayerKind kind : c.layers) ratios.push_back(static_cast<int>(kind));
  return ratios;
}

TEST(Synthetic, TakesTheFirstLayersOfTheReleasedSchedule) {
  Result<ModelConfig> flash = ParseSyntheticSpec("flash:6", 24);
  ASSERT_TRUE(flash.ok()) << flash.status().ToString();
  EXPECT_EQ(Ratios(*flash), (std::vector<int>{0, 0, 4, 128, 4, 128}));
  EXPECT_EQ(flash->num_hash_layers, 3);
  EXPECT_EQ(flash->n_routed_experts, 24);
  EXPECT_EQ(flash->index_topk, 512);
  Result<ModelConfig> pro = ParseSyntheticSpec("pro:4");
  ASSERT_TRUE(pro.ok()) << pro.status().ToString();
  EXPECT_EQ(Ratios(*pro), (std::vector<int>{128, 128, 4, 128}));
  EXPECT_EQ(pro->n_routed_experts, 384);
  EXPECT_EQ(FlashConfig().layers[42], LayerKind::kCsa);
  EXPECT_EQ(ProConfig().layers[60], LayerKind::kCsa);
}

TEST(Synthetic, RefusesWhatNoReleaseHas) {
  for (const char* spec :
       {"", "flash:", "flash:0", "flash:44", "flash:6x", "flash:-1", "pro:62", "tiny-a:2", "mini"}) {
    EXPECT_EQ(ParseSyntheticSpec(spec).status().code(), StatusCode::kInvalidArgument) << spec;
  }
  EXPECT_FALSE(ParseSyntheticSpec("flash:2", 257).ok());
  EXPECT_FALSE(ParseSyntheticSpec("flash:2", -1).ok());
}

TEST(Synthetic, ItsConfigsAreValidConfigs) {
  for (const ModelConfig& config : {FlashConfig(6, 24), ProConfig(4, 2), TinyAConfig(), TinyBConfig()}) {
    const Result<ModelConfig> parsed = ParseModelConfig(ConfigJson(config));
    EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
  }
}

TEST(Synthetic, IsTheSameForEveryNumberOfThreads) {
  LoadedModel one = MakeSyntheticModel(TinyAConfig(), {.seed = 3, .num_threads = 1});
  LoadedModel three = MakeSyntheticModel(TinyAConfig(), {.seed = 3, .num_threads = 3});
  LoadedModel other = MakeSyntheticModel(TinyAConfig(), {.seed = 4, .num_threads = 1});
  const auto a = ListTensors(&one), b = ListTensors(&three), c = ListTensors(&other);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].bytes, b[i].bytes) << a[i].name;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool is_matrix = a[i].dtype == "F8_E4M3" || a[i].dtype == "I8";
    EXPECT_TRUE(!is_matrix || a[i].bytes != c[i].bytes) << a[i].name;
  }
}

// Root mean square of a matrix's values times the square root of its columns: the gain of y = W x.
double Gain(const MatrixView& m) {
  double sum = 0;
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c) sum += static_cast<double>(m.At(r, c)) * m.At(r, c);
  }
  return std::sqrt(sum / static_cast<double>(m.rows));
}

TEST(Synthetic, KeepsActivationsNearOneAndLeavesNothingAtADefault) {
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    const LoadedModel model = MakeSyntheticModel(TinyAConfig(), {.expert_dtype = dtype});
    const BlockWeights& block = model.weights.layers[4];
    for (const MatrixView& m :
         {block.attn.wq_a, block.attn.wkv, block.attn.wo_b, block.ffn.experts[1].w1, block.ffn.experts[7].w2,
          block.ffn.shared.w3, block.ffn.gate, block.hc_attn.fn}) {
      EXPECT_GT(Gain(m), 0.4);  // a small matrix has a single scale, which may be half or double
      EXPECT_LT(Gain(m), 2.5);
    }
    EXPECT_NEAR(Gain(model.weights.head), 3, 0.3);
    EXPECT_EQ(block.ffn.experts[0].w1.dtype, dtype);
    std::set<float> sinks;
    for (int64_t i = 0; i < block.attn.attn_sink.size; ++i) sinks.insert(block.attn.attn_sink[i]);
    EXPECT_EQ(sinks.size(), 4u);
    std::set<int> exponents(block.attn.wq_b.scales, block.attn.wq_b.scales + 4);
    EXPECT_GT(exponents.size(), 1u);
  }
}

TEST(Synthetic, RoutingTablesNameDifferentExperts) {
  const LoadedModel model = MakeSyntheticModel(TinyAConfig());
  const ModelConfig& c = model.weights.config;
  const int64_t* table = model.weights.layers[0].ffn.tid2eid;
  ASSERT_NE(table, nullptr);
  std::set<int64_t> seen;
  for (int64_t v = 0; v < c.vocab_size; ++v) {
    EXPECT_NE(table[2 * v], table[2 * v + 1]);
    seen.insert({table[2 * v], table[2 * v + 1]});
  }
  EXPECT_EQ(seen.size(), 8u);
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin(), 7);
}

}  // namespace
}  // namespace foresight
