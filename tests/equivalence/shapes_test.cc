// Every shape that config.json's validation lets through must run, and give the same on every table: random
// configs with sizes at the edges of what the kernels were written for.

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

// Relative L2 error of the logits. A wrong shape makes it 1. Clean: inputs that are sums of two bf16 values,
// up to four layers deep. Faithful: values beside a rounding boundary of E4M3 fall to either side, 6 % of
// them apart, and few logits to average.
double Tolerance(Numerics numerics) {
  return numerics == Numerics::kClean ? 1e-4 : 0.25;
}
constexpr int kShapes = 30;

class Draw {
 public:
  explicit Draw(uint64_t seed) : rng_(seed) {}
  int Below(int n) { return static_cast<int>(rng_() % static_cast<uint64_t>(n)); }
  int From(std::initializer_list<int> values) {
    return values.begin()[Below(static_cast<int>(values.size()))];
  }

 private:
  std::mt19937_64 rng_;
};

ModelConfig RandomConfig(Draw& draw) {
  ModelConfig c = TinyAConfig();
  c.num_draft_layers = c.num_nextn_predict_layers = 0;
  c.num_hidden_layers = 1 + draw.Below(4);
  c.layers.clear();
  for (int i = 0; i < c.num_hidden_layers; ++i)
    c.layers.push_back(static_cast<LayerKind>(draw.From({0, 4, 4, 128})));
  c.num_hash_layers = draw.Below(c.num_hidden_layers + 1);
  c.vocab_size = draw.From({2, 5, 33, 100, 257});
  c.hidden_size = draw.From({32, 64, 96, 160, 256, 288});
  c.o_groups = draw.From({1, 1, 2, 3});
  c.num_attention_heads = c.o_groups * draw.From({1, 2, 3, 5});
  c.qk_rope_head_dim = draw.From({2, 16, 32, 64, 96, 128});
  c.head_dim = c.qk_rope_head_dim + draw.From({32, 64, 64, 128, 192});
  c.q_lora_rank = draw.From({32, 96, 160});
  c.o_lora_rank = draw.From({32, 96, 128, 128});
  c.sliding_window = draw.From({1, 2, 7, 64, 128});
  c.index_n_heads = draw.From({1, 2, 3, 5, 64});
  c.index_head_dim = draw.From({32, 64, 128, 256});
  c.index_topk = draw.From({1, 3, 8, 512});
  c.n_routed_experts = draw.From({1, 2, 3, 7, 33});
  c.num_experts_per_tok = 1 + draw.Below(std::min(c.n_routed_experts, 9));
  c.moe_intermediate_size = draw.From({32, 96, 128, 160});
  c.swiglu_limit = draw.From({0, 10});
  c.hc_sinkhorn_iters = draw.From({1, 20});
  return c;
}

// Records the sets that the reference chooses, or injects them.
class Sets : public StepObserver {
 public:
  explicit Sets(const Sets* forced) : forced_(forced) {}
  bool OnExperts(int layer, std::span<int32_t> ids) override { return Keep(&experts_, layer, ids); }
  void OnPicks(int layer, std::span<int32_t> picks) override { Keep(&picks_, layer, picks); }
  void OnBlock(int, std::span<const float>) override {}

 private:
  using ByLayer = std::map<int, std::vector<int32_t>>;

  bool Keep(ByLayer* sets, int layer, std::span<int32_t> values) {
    if (forced_ == nullptr) {
      (*sets)[layer].assign(values.begin(), values.end());
      return false;
    }
    const ByLayer& from = sets == &experts_ ? forced_->experts_ : forced_->picks_;
    std::copy(from.at(layer).begin(), from.at(layer).end(), values.begin());
    return true;
  }

  const Sets* forced_;
  ByLayer experts_, picks_;
};

std::vector<float> LastLogits(const LoadedModel& loaded, const KernelTable& table, ThreadPool& pool,
                              Numerics numerics, std::span<const TokenId> tokens, Sets& sets) {
  const int rows = static_cast<int>(tokens.size());
  Model model(loaded.weights, table, pool, {.numerics = numerics, .max_step_rows = rows});
  const auto cache = KvCache::Create(
      model.cache_layout(), {.budget_bytes = 64 << 20, .max_sequences = 1, .max_sequence_tokens = 512});
  CHECK(cache.ok(), "{}", cache.status().ToString());
  Result<SequenceState> sequence = (*cache)->NewSequence();
  const SequenceChunk chunk[] = {{.sequence = &*sequence, .num_rows = rows}};
  const int32_t last[] = {rows - 1};
  const auto out = model.Step({.tokens = tokens, .chunks = chunk, .logit_rows = last, .observer = &sets});
  CHECK(out.ok(), "{}", out.status().ToString());
  return std::vector<float>(out->logits.begin(), out->logits.end());
}

TEST(Shapes, WhatValidationLetsThroughRunsOnEveryTable) {
  ThreadPool pool(1);
  int num_run = 0;
  int num_refused = 0;
  for (uint64_t seed = 1; num_run < kShapes; ++seed) {
    Draw draw(seed);
    const ModelConfig wanted = RandomConfig(draw);
    const Result<ModelConfig> config = ParseModelConfig(ConfigJson(wanted));
    if (!config.ok()) {
      ++num_refused;
      continue;
    }
    ++num_run;
    SCOPED_TRACE(fmt::format("seed {}: {}", seed, ConfigJson(wanted)));
    const LoadedModel loaded = MakeSyntheticModel(
        *config,
        {.seed = seed, .expert_dtype = seed % 2 == 0 ? DType::kI8 : DType::kF8E4M3, .num_threads = 1});
    std::vector<TokenId> tokens(static_cast<size_t>(draw.From({1, 5, 9, 131})));
    for (TokenId& token : tokens) token = draw.Below(config->vocab_size);
    for (const Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      Sets sets(nullptr);
      const std::vector<float> want = LastLogits(loaded, RefKernels(), pool, numerics, tokens, sets);
      for (const float logit : want) ASSERT_TRUE(std::isfinite(logit));
      for (const char* name : {"cpu-avx2", "cpu-avx512"}) {
        const Result<const KernelTable*> table = FindKernels(name);
        if (!table.ok()) continue;  // not on this machine
        Sets forced(&sets);
        const std::vector<float> got = LastLogits(loaded, **table, pool, numerics, tokens, forced);
        double error = 0, norm = 0;
        for (size_t i = 0; i < want.size(); ++i) {
          error += std::pow(static_cast<double>(got[i]) - want[i], 2);
          norm += std::pow(static_cast<double>(want[i]), 2);
        }
        EXPECT_LE(std::sqrt(error / norm), Tolerance(numerics))
            << name << (numerics == Numerics::kClean ? " clean" : " faithful");
      }
    }
  }
  // The draw reaches beyond what is allowed.
  EXPECT_GT(num_refused, 0);
}

}  // namespace
}  // namespace foresight
