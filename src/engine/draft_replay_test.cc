#include "engine/draft_replay.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/record_drafts.h"
#include "engine/speculation.h"
#include "engine/test_engine.h"

namespace foresight {
namespace {

const EngineOptions kReplayOptions{.num_threads = 1, .context_tokens = 512, .max_sequences = 4};

// `answers` answers of one position each, whose drafts are accepted with these probabilities.
DraftTrace TraceOf(const std::vector<float>& acceptance, int answers, const std::string& method = "dspark") {
  const std::vector<float> confidences(method == "dspark" ? acceptance.size() : 0, 0.5f);
  TracedDomain domain{.name = "all", .answers = {}};
  domain.answers.assign(answers, {.confidences = confidences, .acceptance = acceptance});
  return {
      .method = method, .drafts_max = static_cast<int>(acceptance.size()), .domains = {std::move(domain)}};
}

Request ReplayedRequest(int64_t seed, int64_t max_tokens) {
  Request request{.prompt = TestPrompt(20), .ignore_eos = true, .acceptance = Acceptance::kRejection};
  request.sampling.seed = seed;
  request.sampling.max_tokens = max_tokens;
  return request;
}

DraftCounts Replay(const DraftTrace& trace, const ModelConfig& config, std::string planner, int requests) {
  EngineOptions options = kReplayOptions;
  options.speculation.planner = std::move(planner);
  LoopDriver driver(TestRuntime(options, config), options, &trace);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < requests; ++i) sinks.push_back(driver.Submit(ReplayedRequest(i, 200)));
  driver.Run();
  DraftCounts counts;
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->result.status.ok()) << sink->result.status.ToString();
    EXPECT_EQ(sink->tokens.size(), 200u);
    counts.Add(sink->result.drafts);
  }
  return counts;
}

TEST(DraftReplay, AcceptsAsOftenAsTheTraceSays) {
  const std::vector<float> acceptance = {1, 0.75f, 0.5f, 0, 1};
  const DraftCounts counts = Replay(TraceOf(acceptance, 1), SmallestDSparkConfig(), "static:5", 8);
  for (int k = 0; k < 5; ++k) {
    if (k == 4) {
      EXPECT_EQ(counts.reached[k], 0);  // behind one that is never accepted
      continue;
    }
    const auto reached = static_cast<double>(counts.reached[k]);
    ASSERT_GT(reached, 100);
    const double share = static_cast<double>(counts.accepted[k]) / reached;
    EXPECT_NEAR(share, acceptance[k], 4 * std::sqrt(acceptance[k] * (1 - acceptance[k]) / reached)) << k;
  }
}

TEST(DraftReplay, WorksForMtpAndFollowsThePositionAndTheSeed) {
  // Position p of the sequence: accepted in even places, not in odd ones; a second answer accepts nothing.
  DraftTrace trace = TraceOf({1, 0}, 2, "mtp");
  for (float& p : trace.domains[0].answers[1].acceptance) p = 0;
  trace.drafts_max = 1;
  const ReplayedChance places(trace);
  EXPECT_TRUE(places.Confidences(0, 0).empty());
  EngineOptions options = kReplayOptions;
  options.speculation = {.drafts_max = 1, .planner = "static:1"};
  LoopDriver driver(TestRuntime(options, SmallestMtpConfig()), options, &trace);
  const auto even = driver.Submit(ReplayedRequest(0, 100));
  const auto none = driver.Submit(ReplayedRequest(1, 100));
  driver.Run();
  EXPECT_EQ(none->result.drafts.accepted[0], 0);
  EXPECT_GT(none->result.drafts.reached[0], 50);
  // The first draft is for place 21, the second, one token further, for 22: accepted, and so on with every
  // even place.
  EXPECT_NEAR(static_cast<double>(even->result.drafts.accepted[0]) / even->result.drafts.reached[0], 1, 0.05);
}

TEST(DraftReplay, PlannersSeeTheTracesConfidences) {
  DraftTrace trace = TraceOf({0.5f, 0.5f, 0.5f, 0.5f, 0.5f}, 1);
  trace.domains[0].answers[0].confidences = {0.9f, 0.7f, 0.3f, 1, 1};
  const DraftCounts counts = Replay(trace, SmallestDSparkConfig(), "threshold:0.6", 2);
  EXPECT_GT(counts.verified[1], 20);
  EXPECT_EQ(counts.verified[2], 0);
}

TEST(DraftReplay, RefusesWhatItCanNotReplay) {
  const auto create = [](const DraftTrace& trace, const ModelConfig& config) {
    const std::unique_ptr<Runtime> runtime = TestRuntime(kReplayOptions, config);
    return Speculation::CreateReplay({.planner = "static:1"}, *runtime,
                                     {.max_sequences = 4, .step_rows_max = 64}, std::nullopt, trace)
        .status();
  };
  const std::vector<float> five(5, 0.5f);
  EXPECT_TRUE(create(TraceOf(five, 1), SmallestDSparkConfig()).ok());
  EXPECT_EQ(create(TraceOf(five, 1), SmallestMtpConfig()).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(create(TraceOf({0.5f}, 1), SmallestDSparkConfig()).code(), StatusCode::kInvalidArgument);
  DraftTrace blind = TraceOf(five, 1);
  blind.domains[0].answers[0].confidences.clear();
  EXPECT_EQ(create(blind, SmallestDSparkConfig()).code(), StatusCode::kInvalidArgument);

  EngineOptions options = kReplayOptions;
  options.speculation.planner = "static:5";
  const DraftTrace trace = TraceOf(five, 1);
  LoopDriver driver(TestRuntime(options, SmallestDSparkConfig()), options, &trace);
  EXPECT_EQ(driver.Generate(GreedyRequest(TestPrompt(20), 10))->result.status.code(),
            StatusCode::kInvalidArgument);
}

TEST(RecordDrafts, WritesOneTextForAllHeadsAndWhatSpeculationWouldAccept) {
  const RecordOptions options{.domains = {{"a", {TestPrompt(20), TestPrompt(30, 5)}}}, .answer_tokens = 12};
  const std::unique_ptr<Runtime> dspark = TestRuntime(kReplayOptions, SmallestDSparkConfig());
  const Result<DraftTrace> trace = RecordDrafts(*dspark, Calibration(5), options);
  ASSERT_TRUE(trace.ok()) << trace.status().ToString();
  EXPECT_EQ(trace->method, "dspark");
  ASSERT_EQ(trace->domains.size(), 1u);
  ASSERT_EQ(trace->domains[0].answers.size(), 2u);
  for (const TracedAnswer& answer : trace->domains[0].answers) {
    EXPECT_EQ(answer.acceptance.size(), 60u);
    EXPECT_EQ(answer.confidences.size(), 60u);
    for (float p : answer.acceptance) EXPECT_TRUE(p >= 0 && p <= 1);
  }
  EXPECT_EQ(dspark->cache().stats().total_bytes, 0);
  const std::unique_ptr<Runtime> mtp = TestRuntime(kReplayOptions, SmallestMtpConfig());
  const Result<DraftTrace> chain = RecordDrafts(*mtp, Calibration(5), options);
  ASSERT_TRUE(chain.ok()) << chain.status().ToString();
  EXPECT_EQ(chain->method, "mtp");
  EXPECT_TRUE(chain->domains[0].answers[0].confidences.empty());
  RecordOptions greedy = options;
  greedy.temperature = 0;
  const Result<DraftTrace> sure = RecordDrafts(*mtp, Calibration(5), greedy);
  ASSERT_TRUE(sure.ok()) << sure.status().ToString();
  for (const TracedAnswer& answer : sure->domains[0].answers) {
    for (float p : answer.acceptance) EXPECT_TRUE(p == 0 || p == 1) << p;
  }
  const std::unique_ptr<Runtime> none = TestRuntime(kReplayOptions);
  EXPECT_EQ(RecordDrafts(*none, Calibration(5), options).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace foresight
