// The engine on a device of its own: who draws a row changes no text, and drafts don't either.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "engine/test_engine.h"

namespace foresight {
namespace {

constexpr int kRequests = 40;

// Temperatures 0, 0.7, 1 and one at which random heads agree with the target more often, cuts. A third is the
// host's, if they are asked for: with penalties, bias, log-probabilities.
std::vector<Request> MixedRequests(bool with_the_hosts = true) {
  std::mt19937_64 rng(1);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
  std::vector<Request> requests;
  for (int i = 0; i < kRequests; ++i) {
    Request request = GreedyRequest(TestPrompt(1 + below(60), static_cast<int>(below(5))), 1 + below(40));
    SamplingParams& sampling = request.sampling;
    constexpr double kTemperatures[] = {0, 0.7, 1, 2.5};
    sampling.temperature = kTemperatures[below(4)];
    sampling.seed = below(1 << 20);
    if (below(4) == 0) sampling.min_p = 0.02;
    if (below(3) == 0) sampling.top_p = 0.9;
    if (below(3) == 0) sampling.top_k = 12;
    if (i % 3 == 0 && with_the_hosts) {
      if (below(2) == 0) sampling.repetition_penalty = 1.2;
      if (below(2) == 0) sampling.logprobs = 2;
    }
    request.acceptance = i % 2 == 0 ? Acceptance::kRejection : Acceptance::kCoupled;
    requests.push_back(std::move(request));
  }
  return requests;
}

ModelConfig ConfigOf(DraftChoice draft) {
  if (draft == DraftChoice::kDSpark) return SmallestDSparkConfig();
  return draft == DraftChoice::kMtp ? SmallestMtpConfig() : SmallestConfig();
}

struct Setting {
  DraftChoice draft = DraftChoice::kNone;
  std::string planner = "static:3";
  int step_rows = 512;
  int drafts_max = 0;  // 0: as many as the head can
};

enum class Place { kHost, kApart, kGpu };

std::vector<std::shared_ptr<RecordingSink>> RunAll(const std::vector<Request>& requests,
                                                   const ModelConfig& config, const Setting& setting,
                                                   Place place) {
  EngineOptions options{.num_threads = 1,
                        .context_tokens = 512,
                        .max_sequences = 8,
                        .step_rows_max = setting.step_rows,
                        .kept_prefixes_max = 0};
  if (place == Place::kGpu) options.device = "cuda";
  options.speculation.draft = setting.draft;
  options.speculation.planner = setting.planner;
  options.speculation.drafts_max = setting.drafts_max;
  LoopDriver driver(
      place == Place::kApart ? RuntimeOnDeviceApart(options, config) : TestRuntime(options, config), options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const Request& request : requests) {
    sinks.push_back(driver.Submit(request));
    driver.Step();
  }
  driver.Run();
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->finished && sink->result.status.ok()) << sink->result.status.ToString();
  }
  return sinks;
}

class DrawnOnDevice : public testing::TestWithParam<DraftChoice> {};

// A device that computes as the host does, to the bit: drafts, verdicts and texts are the host's by either
// rule, whoever draws the other rows of a step.
TEST_P(DrawnOnDevice, TextsAreTheHosts) {
  const ModelConfig config = ConfigOf(GetParam());
  const std::vector<Request> requests = MixedRequests();
  int64_t accepted = 0;
  // With room for all drafts in one step of the head, and for those of four sequences at a time.
  for (const auto& [planner, step_rows] : {std::pair("static:3", 512), std::pair("sync", 20)}) {
    const Setting setting{.draft = GetParam(), .planner = planner, .step_rows = step_rows};
    const auto host = RunAll(requests, config, setting, Place::kHost);
    const auto device = RunAll(requests, config, setting, Place::kApart);
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_EQ(device[i]->tokens, host[i]->tokens) << planner << ", request " << i;
      ASSERT_EQ(device[i]->logprobs, host[i]->logprobs) << planner << ", request " << i;
      EXPECT_EQ(device[i]->result.drafts, host[i]->result.drafts) << planner << ", request " << i;
      accepted += host[i]->result.drafts.total_accepted();
    }
  }
  EXPECT_EQ(accepted > 0, GetParam() != DraftChoice::kNone);
}

// The same where nothing comes back to the host before the last draft is drawn. Planners whose plans hang on
// no times: a step that doesn't wait for its drafts has one time for them and its rows, which teaches others.
TEST_P(DrawnOnDevice, TextsAreTheHostsWithoutTheHostInBetween) {
  const ModelConfig config = ConfigOf(GetParam());
  const std::vector<Request> requests = MixedRequests(/*with_the_hosts=*/false);
  int64_t accepted = 0;
  for (const char* planner : {"static:4", "threshold:0.2"}) {
    const Setting setting{.draft = GetParam(), .planner = planner};
    const auto host = RunAll(requests, config, setting, Place::kHost);
    const auto device = RunAll(requests, config, setting, Place::kApart);
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_EQ(device[i]->tokens, host[i]->tokens) << planner << ", request " << i;
      EXPECT_EQ(device[i]->result.drafts, host[i]->result.drafts) << planner << ", request " << i;
      accepted += host[i]->result.drafts.total_accepted();
    }
  }
  EXPECT_EQ(accepted > 0, GetParam() != DraftChoice::kNone);
}

// A block is no longer than the plan may use: drafts are those of a head that can draft no more.
TEST(ShortDrafts, AreThoseOfAShortBlock) {
  const ModelConfig config = SmallestDSparkConfig();
  const std::vector<Request> requests = MixedRequests();
  for (const Place place : {Place::kHost, Place::kApart}) {
    const auto run = [&](int drafts_max) {
      return RunAll(requests, config,
                    {.draft = DraftChoice::kDSpark, .planner = "static:2", .drafts_max = drafts_max}, place);
    };
    const auto of_all = run(0);
    const auto of_two = run(2);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(of_all[i]->tokens, of_two[i]->tokens) << "request " << i;
      EXPECT_EQ(of_all[i]->result.drafts, of_two[i]->result.drafts) << "request " << i;
    }
  }
}

// Damaged weights of a draft head: whoever draws, whether a planner reads confidences or learns them behind
// its plan, requests that draft end with an error, and the engine goes on with those that don't.
TEST(DamagedDraftHead, EndsTheRequestsThatDraft) {
  const std::vector<bf16> damaged(4096, bf16{0x7fc0});
  const auto* nan = reinterpret_cast<const std::byte*>(damaged.data());
  const auto damage = [&](ModelWeights& weights, bool confidences_alone) {
    const MatrixView& confidence = weights.dspark ? weights.dspark->head.confidence : MatrixView();
    CHECK(confidence.rows * confidence.cols <= std::ssize(damaged));
    if (confidences_alone) {
      weights.dspark->head.confidence.data = nan;
    } else {
      (weights.dspark ? weights.dspark->norm : weights.mtp->norm).data = nan;
    }
  };
  struct Case {
    DraftChoice draft;
    bool confidences_alone;
    const char* planner;
  };
  for (const Case& c : {Case{DraftChoice::kDSpark, true, "static:3"},
                        {DraftChoice::kDSpark, true, "threshold:0.5"},
                        {DraftChoice::kDSpark, true, "sync"},
                        {DraftChoice::kDSpark, true, "async"},
                        {DraftChoice::kDSpark, false, "static:3"},
                        {DraftChoice::kDSpark, false, "sync"},
                        {DraftChoice::kDSpark, false, "async"},
                        {DraftChoice::kMtp, false, "static:3"},
                        {DraftChoice::kMtp, false, "async"}}) {
    LoadedModel made = MakeSyntheticModel(ConfigOf(c.draft), {.num_threads = 1});
    damage(made.weights, c.confidences_alone);
    EngineOptions options{
        .num_threads = 1, .context_tokens = 512, .max_sequences = 2, .kept_prefixes_max = 0};
    options.speculation.draft = c.draft;
    options.speculation.planner = c.planner;
    for (const Place place : {Place::kHost, Place::kApart}) {
      SCOPED_TRACE(fmt::format("{}, {}, confidences alone {}, apart {}", static_cast<int>(c.draft), c.planner,
                               c.confidences_alone, place == Place::kApart));
      Backend backend{.kernels = *BestCpuKernels(), .device = nullptr};
      if (place == Place::kApart) backend.device = std::make_unique<DeviceApart>();
      Result<std::unique_ptr<Runtime>> runtime = Runtime::FromSynthetic(made, options, std::move(backend));
      ASSERT_TRUE(runtime.ok()) << runtime.status().ToString();
      LoopDriver driver(std::move(*runtime), options);
      EXPECT_EQ(driver.Generate(GreedyRequest(TestPrompt(9), 40))->result.status.code(),
                StatusCode::kInternal);
      Request plain = GreedyRequest(TestPrompt(9), 20);
      plain.drafts_max = 0;
      EXPECT_EQ(driver.Generate(plain)->tokens.size(), 20u);
    }
  }
}

// A step whose planner doesn't ask what the drafts look like waits for the device once; so does one whose
// drafter couldn't tell.
TEST_P(DrawnOnDevice, WaitsOnceAStep) {
  const std::vector<Request> requests = MixedRequests(/*with_the_hosts=*/false);
  const int to_read = GetParam() == DraftChoice::kDSpark ? 2 : 1;
  for (const auto& [planner, waits_max] :
       {std::pair("static:4", 1), std::pair("async", 1), std::pair("sync", to_read)}) {
    EngineOptions options{
        .num_threads = 1, .context_tokens = 512, .max_sequences = 8, .kept_prefixes_max = 0};
    options.speculation.draft = GetParam();
    options.speculation.planner = planner;
    LoopDriver driver(RuntimeOnDeviceApart(options, ConfigOf(GetParam())), options);
    const auto& device = static_cast<const DeviceApart&>(driver.runtime().device());
    for (const Request& request : requests) driver.Submit(request);
    int64_t most = 0;
    for (int64_t before = device.waits(); driver.Step(); before = device.waits()) {
      most = std::max(most, device.waits() - before);
    }
    EXPECT_GE(most, 1) << planner;
    EXPECT_LE(most, waits_max) << planner;
  }
}

// Steps whose drafts the device has chosen: they are those that the planner would have (Speculation::Settle),
// and texts are those of the seeds.
TEST(DraftsChosenByTheDevice, TextsAreThoseOfTheSeed) {
  static int planned_steps;
  planned_steps = 0;
  KernelTable kernels = **BestCpuKernels();
  kernels.plan_drafts = [](const KernelContext& ctx, const PlanDraftsArgs& args) {
    ++planned_steps;
    PlanDraftsRef(ctx, args);
  };
  std::vector<Request> requests = MixedRequests(/*with_the_hosts=*/false);
  for (Request& request : requests) request.acceptance = Acceptance::kCoupled;
  const ModelConfig config = SmallestDSparkConfig();
  const auto plain = RunAll(requests, config, {.draft = DraftChoice::kNone}, Place::kHost);
  EngineOptions options{.num_threads = 1,
                        .context_tokens = 512,
                        .max_sequences = 8,
                        .step_rows_max = 64,
                        .kept_prefixes_max = 0};
  options.speculation.draft = DraftChoice::kDSpark;
  options.speculation.planner = "async";
  LoopDriver driver(RuntimeOnDeviceApart(options, config, kernels), options);
  const auto& device = static_cast<const DeviceApart&>(driver.runtime().device());
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const Request& request : requests) sinks.push_back(driver.Submit(request));
  int64_t most = 0;
  for (int64_t before = device.waits(); driver.Step(); before = device.waits()) {
    most = std::max(most, device.waits() - before);
  }
  EXPECT_EQ(most, 1);
  EXPECT_GT(planned_steps, 20);
  int64_t accepted = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_TRUE(sinks[i]->result.status.ok()) << sinks[i]->result.status.ToString();
    ASSERT_EQ(sinks[i]->tokens, plain[i]->tokens) << i;
    accepted += sinks[i]->result.drafts.total_accepted();
  }
  EXPECT_GT(accepted, 0);
}

// The GPU's own texts, which its drafts don't change.
TEST_P(DrawnOnDevice, TextsAreThoseOfTheSeedOnAGpu) {
  if (const auto backend = OpenBackend("cuda", "auto"); !backend.ok())
    GTEST_SKIP() << backend.error().message();
  const ModelConfig config = ConfigOf(GetParam());
  int64_t accepted = 0;
  for (const bool with_the_hosts : {true, false}) {
    std::vector<Request> requests = MixedRequests(with_the_hosts);
    for (Request& request : requests) request.acceptance = Acceptance::kCoupled;
    const auto plain = RunAll(requests, config, {.draft = DraftChoice::kNone}, Place::kGpu);
    for (const char* planner : {"static:3", "sync", "async"}) {
      const auto drafted = RunAll(requests, config, {.draft = GetParam(), .planner = planner}, Place::kGpu);
      for (size_t i = 0; i < requests.size(); ++i) {
        ASSERT_EQ(drafted[i]->tokens, plain[i]->tokens) << planner << ", request " << i;
        ASSERT_EQ(drafted[i]->logprobs, plain[i]->logprobs) << planner << ", request " << i;
        accepted += drafted[i]->result.drafts.total_accepted();
      }
    }
  }
  EXPECT_EQ(accepted > 0, GetParam() != DraftChoice::kNone);
}

// The same of two requests of few tokens, whose prompts are longer than a step: what racecheck can follow.
TEST_P(DrawnOnDevice, LittleTextsAreThoseOfTheSeedOnAGpu) {
  if (const auto backend = OpenBackend("cuda", "auto"); !backend.ok())
    GTEST_SKIP() << backend.error().message();
  std::vector<Request> requests;
  for (const int prompt : {3, 18}) {
    Request request = GreedyRequest(TestPrompt(prompt), prompt == 3 ? 3 : 2);
    request.sampling.temperature = prompt == 3 ? 0 : 1;
    request.sampling.seed = 7;
    request.acceptance = Acceptance::kCoupled;
    requests.push_back(std::move(request));
  }
  requests.back().sampling.logprobs = 2;
  // There is nothing to look up but in a text that repeats itself.
  if (GetParam() == DraftChoice::kNgram) {
    requests.front().prompt = {9, 9, 9, 9};
    requests.front().sampling.logit_bias = {{9, 100}};
  }
  const ModelConfig config = ConfigOf(GetParam());
  const auto plain = RunAll(requests, config, {.draft = DraftChoice::kNone, .step_rows = 16}, Place::kGpu);
  const auto drafted =
      RunAll(requests, config, {.draft = GetParam(), .planner = "static:3", .step_rows = 16}, Place::kGpu);
  int64_t drafts = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_EQ(drafted[i]->tokens, plain[i]->tokens) << "request " << i;
    ASSERT_EQ(drafted[i]->logprobs, plain[i]->logprobs) << "request " << i;
    drafts += drafted[i]->result.drafts.drafted;
  }
  EXPECT_EQ(drafts > 0, GetParam() != DraftChoice::kNone);
}

INSTANTIATE_TEST_SUITE_P(Drafters, DrawnOnDevice,
                         testing::Values(DraftChoice::kNone, DraftChoice::kDSpark, DraftChoice::kMtp,
                                         DraftChoice::kNgram),
                         [](const auto& param) {
                           return param.param == DraftChoice::kNone     ? "None"
                                  : param.param == DraftChoice::kDSpark ? "DSpark"
                                  : param.param == DraftChoice::kMtp    ? "Mtp"
                                                                        : "Ngram";
                         });

// Two answers grow past what three blocks hold: one gives way, is saved or computed anew, and says the same
// in the end.
TEST(Preemption, TextsAreTheSameOnAGpu) {
  if (const auto backend = OpenBackend("cuda", "auto"); !backend.ok())
    GTEST_SKIP() << backend.error().message();
  std::vector<Request> requests;
  for (int i = 0; i < 2; ++i) requests.push_back(GreedyRequest(TestPrompt(254 + i, 3 + i), 4));
  EngineOptions options{
      .num_threads = 1, .device = "cuda", .context_tokens = 512, .max_sequences = 2, .kept_prefixes_max = 0};
  options.speculation.draft = DraftChoice::kNone;
  std::vector<std::vector<TokenId>> alone;
  for (const Request& request : requests) alone.push_back(LoopDriver(options).Generate(request)->tokens);
  options.cache_bytes_max = CacheBytesOf(/*blocks=*/3, options);
  for (const int64_t saved_bytes_max : {int64_t{0}, int64_t{1} << 30}) {
    options.saved_bytes_max = saved_bytes_max;
    LoopDriver driver(options);
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (const Request& request : requests) sinks.push_back(driver.Submit(request));
    driver.Run();
    int64_t preemptions = 0;
    for (size_t i = 0; i < sinks.size(); ++i) {
      EXPECT_EQ(sinks[i]->tokens, alone[i]) << i;
      preemptions += sinks[i]->result.preemptions;
    }
    EXPECT_GT(preemptions, 0);
    EXPECT_EQ(driver.loop().statistics().restored > 0, saved_bytes_max > 0);
  }
}

// Acceptance by rejection on the GPU and on the host, which compute a little differently: the same within
// four standard deviations.
TEST(Rejection, AcceptsOnAGpuAsOnTheHost) {
  if (const auto backend = OpenBackend("cuda", "auto"); !backend.ok())
    GTEST_SKIP() << backend.error().message();
  std::vector<Request> requests;
  for (int i = 0; i < 60; ++i) {
    Request request = GreedyRequest(TestPrompt(20 + i, i % 5), 60);
    request.sampling.temperature = 1.5;
    request.sampling.seed = i;
    request.acceptance = Acceptance::kRejection;
    requests.push_back(std::move(request));
  }
  const ModelConfig config = SmallestDSparkConfig();
  const Setting setting{.draft = DraftChoice::kDSpark, .planner = "static:5"};
  const auto share = [&](Place place) {
    double reached = 0, accepted = 0;
    for (const auto& sink : RunAll(requests, config, setting, place)) {
      for (int k = 0; k < 5; ++k) {
        reached += static_cast<double>(sink->result.drafts.reached[k]);
        accepted += static_cast<double>(sink->result.drafts.accepted[k]);
      }
    }
    return std::pair(accepted / reached, reached);
  };
  const auto [host, host_reached] = share(Place::kHost);
  const auto [gpu, gpu_reached] = share(Place::kGpu);
  EXPECT_GT(host_reached, 1000);
  EXPECT_NEAR(gpu, host, 4 * std::sqrt(host * (1 - host) * (1 / host_reached + 1 / gpu_reached)));
}

}  // namespace
}  // namespace foresight
