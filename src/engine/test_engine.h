// Test support: the engine's loop under a clock of its own, step by step and on one thread, with a model that
// is as small as the formats allow.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "device/device_apart.h"
#include "engine/engine_loop.h"
#include "tokenizer/byte_level.h"
#include "weights/synthetic.h"

namespace foresight {

// One layer of each kind, random weights, no draft head.
inline ModelConfig SmallestConfig() {
  ModelConfig config = TinyAConfig();
  config.num_hidden_layers = 3;
  config.layers = {LayerKind::kSwa, LayerKind::kCsa, LayerKind::kHca};
  config.num_hash_layers = 1;
  config.hidden_size = 128;
  config.num_attention_heads = 2;
  config.o_groups = 1;
  config.vocab_size = 256;
  config.sliding_window = 32;
  config.index_n_heads = 2;
  config.n_routed_experts = 4;
  config.num_draft_layers = 0;
  config.num_nextn_predict_layers = 0;
  return config;
}

// Everything that a request's sink was told.
class RecordingSink : public EventSink {
 public:
  void OnOutput(const OutputEvent& event) override {
    EXPECT_FALSE(finished) << "output after the end";
    for (const OutputToken& token : event.tokens) {
      tokens.push_back(token.token);
      logprobs.push_back(token.logprob);
    }
    text += event.text;
    ++events;
  }
  void OnFinish(const RequestResult& r) override {
    EXPECT_FALSE(finished) << "finished twice";
    finished = true;
    result = r;
  }

  std::vector<TokenId> tokens;
  std::vector<double> logprobs;
  std::string text;
  int events = 0;
  bool finished = false;
  RequestResult result;
};

// The same with an MTP-1 block.
inline ModelConfig SmallestMtpConfig() {
  ModelConfig config = SmallestConfig();
  config.num_draft_layers = 1;
  config.num_nextn_predict_layers = 1;
  return config;
}

// The same with a DSpark head of two stages.
inline ModelConfig SmallestDSparkConfig() {
  ModelConfig config = SmallestConfig();
  AddDSparkHead(&config, /*num_stages=*/2);
  return config;
}

// Costs as of a machine that reads weights: a step's time rises slowly with its rows.
inline StepCostTable TestCosts(int drafts_max) {
  StepCostTable costs;
  costs.drafts_max = drafts_max;
  costs.host_ms = 0.1;
  costs.draft_ms = costs.draft_first_ms = {{1, 1}, {32, 6}};
  costs.verify_ms[1024] = {{1, 10}, {2, 11}, {8, 15}, {64, 60}, {512, 400}};
  return costs;
}

inline std::unique_ptr<Runtime> TestRuntime(const EngineOptions& options,
                                            const ModelConfig& config = SmallestConfig()) {
  Result<std::unique_ptr<Runtime>> runtime = Runtime::Synthesize(config, options);
  EXPECT_TRUE(runtime.ok()) << runtime.status().ToString();
  return std::move(*runtime);
}

inline std::unique_ptr<Runtime> RuntimeOnDeviceApart(const EngineOptions& options, const ModelConfig& config,
                                                     const KernelTable& kernels = **BestCpuKernels()) {
  const LoadedModel made = MakeSyntheticModel(config, {.num_threads = options.num_threads});
  Backend backend{.kernels = &kernels, .device = std::make_unique<DeviceApart>()};
  Result<std::unique_ptr<Runtime>> runtime = Runtime::FromSynthetic(made, options, std::move(backend));
  EXPECT_TRUE(runtime.ok()) << runtime.status().ToString();
  return std::move(*runtime);
}

// Token i is byte i.
inline Tokenizer ByteTokenizer() {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    vocab += fmt::format("{}{}: {}", byte > 0 ? ", " : "", JsonString(SpellingOfByte(byte)), byte);
  }
  Result<Tokenizer> tokenizer = Tokenizer::Load(
      R"({"model": {"type": "BPE", "merges": [], "vocab": {)" + vocab +
      R"(}}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}})");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return std::move(*tokenizer);
}

// Bytes of caches with `blocks` blocks of 256 tokens for the states of `options`.
inline int64_t CacheBytesOf(int64_t blocks, const EngineOptions& options,
                            const ModelConfig& config = SmallestConfig()) {
  const std::unique_ptr<Runtime> runtime = TestRuntime({.num_threads = 1,
                                                        .numerics = options.numerics,
                                                        .context_tokens = options.context_tokens,
                                                        .max_sequences = 1,
                                                        .kept_prefixes_max = 0,
                                                        .speculation = options.speculation},
                                                       config);
  const CacheStats stats = runtime->cache().stats();
  return blocks * stats.block_bytes +
         (options.max_sequences + options.kept_prefixes_max) * stats.sequence_bytes;
}

class LoopDriver {
 public:
  explicit LoopDriver(const EngineOptions& options, const ModelConfig& config = SmallestConfig())
      : LoopDriver(TestRuntime(options, config), options) {}
  // `trace`: replayed, if there is one.
  LoopDriver(std::unique_ptr<Runtime> runtime, const EngineOptions& options,
             const DraftTrace* trace = nullptr)
      : runtime_(std::move(runtime)),
        loop_(*runtime_, options, MakeSpeculation(*runtime_, options, trace), queue_,
              [this] { return now_ += 1e-3; }) {}

  std::shared_ptr<RecordingSink> Submit(Request request) {
    auto sink = std::make_shared<RecordingSink>();
    Submit(std::move(request), sink);
    return sink;
  }
  void Submit(Request request, std::shared_ptr<EventSink> sink) {
    auto ticket = std::make_shared<Ticket>();
    ticket->number = ++number_;
    ticket->request = std::move(request);
    ticket->sink = std::move(sink);
    ticket->submitted = now_;
    queue_.requests += 1;
    queue_.tokens += std::ssize(ticket->request.prompt);
    tickets_.push_back(ticket);
    loop_.Add(std::move(ticket));
  }
  // The i-th of the submitted ones.
  void Cancel(size_t i) { tickets_[i]->cancelled = true; }
  void CancelAll() {
    for (const auto& ticket : tickets_) ticket->cancelled = true;
  }
  void Wait(double seconds) { now_ += seconds; }
  bool Step() { return loop_.Step(); }
  void Run() {
    while (loop_.Step()) {
    }
  }
  // Submits and runs to the end.
  std::shared_ptr<RecordingSink> Generate(Request request) {
    auto sink = Submit(std::move(request));
    Run();
    return sink;
  }

  Runtime& runtime() { return *runtime_; }
  EngineLoop& loop() { return loop_; }
  QueueGauge& queue() { return queue_; }

 private:
  static std::unique_ptr<Speculation> MakeSpeculation(Runtime& runtime, const EngineOptions& options,
                                                      const DraftTrace* trace) {
    if (runtime.draft_method() == DraftMethod::kNone) return nullptr;
    const SpeculationLimits limits{.max_sequences = options.max_sequences,
                                   .step_rows_max = runtime.step_rows_max()};
    Result<std::unique_ptr<Speculation>> made =
        trace == nullptr
            ? Speculation::Create(options.speculation, runtime, limits, TestCosts(5),
                                  /*calibration=*/std::nullopt)
            : Speculation::CreateReplay(options.speculation, runtime, limits, TestCosts(5), *trace);
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    return std::move(*made);
  }

  double now_ = 0;
  RequestNumber number_ = 0;
  std::unique_ptr<Runtime> runtime_;
  QueueGauge queue_;
  std::vector<std::shared_ptr<Ticket>> tickets_;
  EngineLoop loop_;
};

inline std::vector<TokenId> TestPrompt(int64_t count, int first = 3) {
  std::vector<TokenId> prompt(count);
  for (int64_t i = 0; i < count; ++i)
    prompt[i] = static_cast<TokenId>((first + 7 * i + i * i % 11) % 250 + 2);
  return prompt;
}

inline Request GreedyRequest(std::vector<TokenId> prompt, int64_t max_tokens) {
  Request request{.prompt = std::move(prompt), .ignore_eos = true};
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  return request;
}

}  // namespace foresight
