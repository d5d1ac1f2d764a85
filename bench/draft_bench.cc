// What a DSpark round costs beside the steps that it is to save: draft_bench [SPEC [EXPERTS [THREADS]]]. SPEC
// as in
// --synthetic with +dspark; without arguments, random weights of the embedded model's shape with two stages.
// Times are medians of some runs and their range; each ratio is of one run.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "weights/model_files.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

constexpr int kContext = 300;
constexpr int kRuns = 21;

double MedianMs(const std::string& what, const std::function<void()>& prepare,
                const std::function<void()>& run) {
  std::vector<double> ms;
  for (int i = -3; i < kRuns; ++i) {
    prepare();
    const auto start = std::chrono::steady_clock::now();
    run();
    const auto end = std::chrono::steady_clock::now();
    if (i >= 0) ms.push_back(std::chrono::duration<double, std::milli>(end - start).count());
  }
  std::sort(ms.begin(), ms.end());
  fmt::print("  {:44} {:9.3f} ms ({:.3f} .. {:.3f})\n", what, ms[kRuns / 2], ms.front(), ms.back());
  return ms[kRuns / 2];
}

void Check(const Status& status) {
  CHECK(status.ok(), "{}", status.ToString());
}

// Sequences of one model, all at position kContext.
class Batch {
 public:
  Batch(const ModelWeights& weights, ThreadPool& pool, int count)
      : model_(weights, **BestCpuKernels(), pool, {}), chunks_(count) {
    Result<std::unique_ptr<KvCache>> cache = KvCache::Create(
        model_.cache_layout(),
        {.budget_bytes = int64_t{8} << 30, .max_sequences = count, .max_sequence_tokens = 1024});
    Check(cache.status());
    cache_ = std::move(*cache);
    for (int i = 0; i < count; ++i) {
      Result<SequenceState> state = cache_->NewSequence();
      Check(state.status());
      states_.push_back(std::move(*state));
    }
    for (SequenceState& state : states_) {
      std::vector<TokenId> prompt(kContext);
      for (TokenId& t : prompt) t = Token();
      const SequenceChunk chunk[] = {{.sequence = &state, .num_rows = kContext}};
      Check(model_.Step({.tokens = prompt, .chunks = chunk, .logit_rows = {}}).status());
      sequences_.push_back(&state);
    }
  }

  // A step of `rows` rows of each sequence, all with logits, which is taken back.
  double StepMs(int rows) {
    const int count = static_cast<int>(states_.size());
    return MedianMs(
        fmt::format("step, {} row{} of {} sequence{}", rows, rows == 1 ? "" : "s", count,
                    count == 1 ? "" : "s"),
        [&] { PrepareStep(rows); },
        [&] {
          Check(model_.Step({.tokens = tokens_, .chunks = chunks_, .logit_rows = logit_rows_}).status());
        });
  }
  // After a verification that kept `accepted` rows, which the draft layers have to take up.
  double BlockMs(int block, int accepted) {
    return MedianMs(
        fmt::format("draft block of {} after {} new tokens", block, accepted),
        [&] {
          PrepareStep(accepted);
          Check(model_.Step({.tokens = tokens_, .chunks = chunks_, .logit_rows = {}}).status());
          DrawAnchors();
        },
        [&] {
          Check(model_.DraftBlock({.sequences = sequences_, .anchors = anchors_, .block = block}).status());
        });
  }
  double HeadsMs(int block) {
    return MedianMs(
        fmt::format("sequential head, {} positions", block),
        [&] {
          DrawAnchors();
          Check(model_.DraftBlock({.sequences = sequences_, .anchors = anchors_, .block = block}).status());
        },
        [&] {
          for (int k = 0; k < block; ++k) Check(model_.DraftHead(k, anchors_).status());
        });
  }

 private:
  void PrepareStep(int rows) {
    const int count = static_cast<int>(states_.size());
    tokens_.resize(count * rows);
    logit_rows_.resize(count * rows);
    for (int i = 0; i < count * rows; ++i) {
      tokens_[i] = Token();
      logit_rows_[i] = i;
    }
    for (int i = 0; i < count; ++i) {
      Check(states_[i].Truncate(kContext));
      chunks_[i] = {.sequence = sequences_[i], .num_rows = rows};
    }
  }
  TokenId Token() {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<TokenId>((random_ >> 33) % static_cast<uint64_t>(model_.config().vocab_size));
  }
  void DrawAnchors() {
    anchors_.resize(states_.size());
    for (TokenId& t : anchors_) t = Token();
  }

  Model model_;
  std::unique_ptr<KvCache> cache_;
  std::vector<SequenceState> states_;
  std::vector<SequenceState*> sequences_;
  std::vector<SequenceChunk> chunks_;
  std::vector<TokenId> tokens_, anchors_;
  std::vector<int32_t> logit_rows_;
  uint64_t random_ = 1;
};

Result<ModelConfig> ConfigOf(int argc, char** argv) {
  if (argc > 1) return ParseSyntheticSpec(argv[1], argc > 2 ? std::atoi(argv[2]) : 0);
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModelDirectory("models/foresight-mini"));
  ASSIGN_OR_RETURN(const std::string_view json, files.FindText("config.json"));
  ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(json));
  AddDSparkHead(&config, /*num_stages=*/2);
  config.dspark.markov_rank = 64;
  return config;
}

Status Run(int argc, char** argv) {
  ASSIGN_OR_RETURN(const ModelConfig config, ConfigOf(argc, argv));
  if (!config.has_dspark()) return InvalidArgument("{} has no DSpark head: add +dspark", argv[1]);
  ThreadPool pool(argc > 3 ? std::atoi(argv[3]) : NumProcessors());
  LoadedModel model = MakeSyntheticModel(config);
  // The same weights without their head: what keeping its taps costs.
  LoadedModel plain = MakeSyntheticModel([&] {
    ModelConfig c = config;
    c.num_draft_layers = 0;
    c.dspark = {};
    return c;
  }());
  const int block = config.dspark.block_size;
  for (int count : {1, 8}) {
    fmt::print("{} sequence{}, context {}, {} threads\n", count, count == 1 ? "" : "s", kContext,
               pool.num_threads());
    double without = 0;
    {
      Batch batch(plain.weights, pool, count);
      fmt::print(" without a head\n");
      without = batch.StepMs(1);
    }
    Batch batch(model.weights, pool, count);
    fmt::print(" with a head\n");
    const double one = batch.StepMs(1);
    const double verify = batch.StepMs(block + 1);
    const double draft = batch.BlockMs(block, /*accepted=*/3);
    const double heads = batch.HeadsMs(block);
    fmt::print("  taps cost {:.1f} % of a step; a round (draft and verify all) costs {:.2f} steps\n",
               100 * (one / without - 1), (verify + draft + heads) / without);
  }
  return Status();
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  const foresight::Status status = foresight::Run(argc, argv);
  if (status.ok()) return 0;
  fmt::print(stderr, "draft_bench: {}\n", status.ToString());
  return 1;
}
