// Every CPU table against the reference on models that use every operation, in both numerics: each layer's
// streams, with the reference's expert and index sets injected, and the logits.

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

// Ten times what inputs that are sums of two bf16 values cost, a handful of layers deep.
constexpr double kTolerance = 1e-4;

struct Sets {
  std::vector<std::vector<int32_t>> experts, picks;
};

class Recorder : public StepObserver {
 public:
  Recorder(size_t layers, const Sets* forced) : forced_(forced) {
    sets.experts.resize(layers);
    sets.picks.resize(layers);
    streams.resize(layers);
  }
  bool OnExperts(int layer, std::span<int32_t> ids) override {
    sets.experts[layer].assign(ids.begin(), ids.end());
    if (forced_ != nullptr)
      std::copy(forced_->experts[layer].begin(), forced_->experts[layer].end(), ids.begin());
    return forced_ != nullptr;
  }
  void OnPicks(int layer, std::span<int32_t> picks) override {
    sets.picks[layer].assign(picks.begin(), picks.end());
    if (forced_ != nullptr)
      std::copy(forced_->picks[layer].begin(), forced_->picks[layer].end(), picks.begin());
  }
  void OnBlock(int layer, std::span<const float> s) override { streams[layer].assign(s.begin(), s.end()); }

  Sets sets;
  std::vector<std::vector<float>> streams;

 private:
  const Sets* forced_;
};

double RelativeL2(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    error += d * d;
    norm += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(error / norm);
}

class TableParityTest : public testing::TestWithParam<const char*> {};

TEST_P(TableParityTest, EveryLayerEqualsTheReference) {
  Result<const KernelTable*> table = FindKernels(GetParam());
  if (!table.ok()) GTEST_SKIP() << table.status().ToString();
  ThreadPool pool(1);
  struct Shape {
    ModelConfig config;
    DType experts;
    int rows;
  };
  ModelConfig active_clamp = TinyAConfig();
  active_clamp.swiglu_limit = 0.5;
  for (const Shape& m : {Shape{TinyAConfig(), DType::kI8, 132}, Shape{active_clamp, DType::kF8E4M3, 20},
                         Shape{TinyBConfig(), DType::kI8, 24}}) {
    const LoadedModel loaded =
        MakeSyntheticModel(m.config, {.seed = 5, .expert_dtype = m.experts, .num_threads = 2});
    const size_t layers = m.config.num_hidden_layers + m.config.num_draft_layers;
    std::mt19937 rng(9);
    std::vector<TokenId> tokens(m.rows);
    for (TokenId& t : tokens) t = static_cast<TokenId>(rng() % m.config.vocab_size);
    const int32_t last[] = {m.rows - 1};
    auto run = [&](const KernelTable& t, Recorder& recorder) {
      Model model(loaded.weights, t, pool, {.numerics = Numerics::kClean, .max_step_rows = m.rows});
      Result<std::unique_ptr<KvCache>> cache = KvCache::Create(
          model.cache_layout(), {.budget_bytes = 64 << 20, .max_sequences = 1, .max_sequence_tokens = 512});
      CHECK(cache.ok(), "{}", cache.status().ToString());
      Result<SequenceState> sequence = (*cache)->NewSequence();
      CHECK(sequence.ok());
      const SequenceChunk chunk[] = {{.sequence = &*sequence, .num_rows = m.rows}};
      const Result<StepOutputs> out =
          model.Step({.tokens = tokens, .chunks = chunk, .logit_rows = last, .observer = &recorder});
      CHECK(out.ok(), "{}", out.status().ToString());
      return std::vector<float>(out->logits.begin(), out->logits.end());
    };
    Recorder ref(layers, nullptr);
    const std::vector<float> want = run(RefKernels(), ref);
    Recorder fast(layers, &ref.sets);
    const std::vector<float> got = run(**table, fast);
    for (int l = 0; l < m.config.num_hidden_layers; ++l) {
      EXPECT_LE(RelativeL2(fast.streams[l], ref.streams[l]), kTolerance) << "layer " << l;
    }
    EXPECT_LE(RelativeL2(got, want), kTolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, TableParityTest, testing::Values("cpu-avx2", "cpu-avx512"),
                         [](const auto& param) { return std::string(param.param + 4); });

}  // namespace
}  // namespace foresight
