// Nothing but speed changes: with the coupled rule a request's tokens are the same with and without drafts,
// whoever drafts, whatever the planner verifies, alone and in a batch, after prefix hits and preemptions. And
// a head's drafts are the same drafts: its acceptance by position does not change either.
//
//   speculation_test [--requests=N] [--seed=N] [googletest options]
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "engine/test_engine.h"
#include "tests/test_main.h"

namespace foresight {
namespace {

int g_requests = 200;
uint64_t g_seed = 1;

constexpr int64_t kContextTokens = 768;

// Temperatures 0, 0.7 and 1 (and one at which random heads agree with the target more often), top-p,
// penalties, ends of sequence and stop strings in the middle, prompts with beginnings in common, answers past
// the ends of two blocks, so that those that run together need more memory than they began with.
std::vector<Request> RandomRequests(int count) {
  std::mt19937_64 rng(g_seed);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    const bool is_long = below(16) == 0;
    Request request =
        GreedyRequest(TestPrompt(is_long ? 230 + below(90) : 1 + below(40), static_cast<int>(below(3))),
                      is_long ? 200 + below(220) : 1 + below(24));
    SamplingParams& sampling = request.sampling;
    constexpr double kTemperatures[] = {0, 0.7, 1, 2.5};
    sampling.temperature = kTemperatures[below(4)];
    if (sampling.temperature > 0) sampling.seed = below(1 << 20);
    if (below(3) == 0) sampling.top_p = 0.9;
    if (below(4) == 0) sampling.top_k = 12;
    if (below(5) == 0) sampling.min_p = 0.02;
    if (below(3) == 0) sampling.repetition_penalty = 1.2;
    if (below(4) == 0) sampling.frequency_penalty = 0.4;
    if (below(4) == 0) sampling.presence_penalty = 0.3;
    if (below(4) == 0) sampling.logprobs = static_cast<int>(below(3));
    request.ignore_eos = below(3) > 0;
    if (!request.ignore_eos) sampling.logit_bias = {{1, 4.0}};  // the end is likely, somewhere
    if (!is_long && below(2) == 0) {  // tokens are bytes: any of a few, or two in a row
      for (int k = 0; k < 12; ++k)
        sampling.stop.emplace_back(k < 8 ? 1 : 2, static_cast<char>(33 + below(90)));
      sampling.include_stop = below(2) == 0;
    }
    request.acceptance = Acceptance::kCoupled;
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Outcome {
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<double>> logprobs;
  std::vector<std::string> texts;
  std::vector<FinishReason> finishes;
  std::vector<RequestResult> results;
  EngineStatistics statistics;
};

struct Setting {
  DraftChoice draft = DraftChoice::kNone;
  std::string planner = "static:3";
  int batch = 1;
  int64_t blocks = 0;  // of the caches; 0: room for all
  bool keep_prefixes = false;
  int64_t saved_bytes_max = 0;
  int arrivals = 0;  // a request every so many steps at most; 0: all at once
};

Outcome RunAll(const std::vector<Request>& requests, const ModelConfig& config, const Setting& setting) {
  EngineOptions options{.num_threads = 1,
                        .context_tokens = kContextTokens,
                        .max_sequences = setting.batch,
                        .step_rows_max = 512,
                        .kept_prefixes_max = setting.keep_prefixes ? 6 : 0,
                        .saved_bytes_max = setting.saved_bytes_max};
  options.speculation.draft = setting.draft;
  options.speculation.planner = setting.planner;
  if (setting.blocks > 0) options.cache_bytes_max = CacheBytesOf(setting.blocks, options, config);
  LoopDriver driver(options, config);
  driver.runtime().SetTokenizer(ByteTokenizer());
  std::mt19937_64 rng(g_seed + 7);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const Request& request : requests) {
    if (setting.arrivals > 0) {
      for (int64_t steps = static_cast<int64_t>(rng() % setting.arrivals); steps > 0; --steps) driver.Step();
    }
    sinks.push_back(driver.Submit(request));
  }
  driver.Run();
  Outcome run;
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->finished && sink->result.status.ok()) << sink->result.status.ToString();
    EXPECT_EQ(sink->result.completion_tokens, std::ssize(sink->tokens));
    run.tokens.push_back(sink->tokens);
    run.logprobs.push_back(sink->logprobs);
    run.texts.push_back(sink->text);
    run.finishes.push_back(sink->result.finish);
    run.results.push_back(sink->result);
  }
  driver.loop().ClearKeptPrefixes();
  run.statistics = driver.loop().statistics();
  EXPECT_EQ(run.statistics.cache_bytes, 0);
  EXPECT_EQ(run.statistics.saved_bytes, 0);
  return run;
}

void ExpectSameText(const Outcome& run, const Outcome& plain, std::string_view what) {
  for (size_t i = 0; i < plain.tokens.size(); ++i) {
    ASSERT_EQ(run.tokens[i], plain.tokens[i]) << what << ", request " << i;
    ASSERT_EQ(run.logprobs[i], plain.logprobs[i]) << what << ", request " << i;
    ASSERT_EQ(run.texts[i], plain.texts[i]) << what << ", request " << i;
    ASSERT_EQ(run.finishes[i], plain.finishes[i]) << what << ", request " << i;
    const RequestResult& r = run.results[i];
    ASSERT_EQ(r.stop_string, plain.results[i].stop_string) << what << ", request " << i;
    // Of each step its own token, and what it accepted; a stop may have cut the last one.
    ASSERT_LE(r.completion_tokens, r.drafts.steps + r.drafts.total_accepted());
    ASSERT_LE(r.drafted_tokens, r.drafts.total_accepted());
  }
}

ModelConfig ConfigOf(DraftChoice draft) {
  switch (draft) {
    case DraftChoice::kDSpark:
      return SmallestDSparkConfig();
    case DraftChoice::kMtp:
      return SmallestMtpConfig();
    default:
      return SmallestConfig();
  }
}

class DraftedText : public testing::TestWithParam<DraftChoice> {};

TEST_P(DraftedText, IsTheTextOfTheSeed) {
  const ModelConfig config = ConfigOf(GetParam());
  const std::vector<Request> requests = RandomRequests(g_requests);
  const Outcome plain = RunAll(requests, config, {.draft = DraftChoice::kNone});
  EXPECT_EQ(plain.statistics.drafts.drafted, 0);
  EXPECT_TRUE(std::ranges::any_of(plain.results, [](const auto& r) { return r.stop_string >= 0; }));
  for (const int batch : {1, 32}) {
    for (const char* planner : {"static:3", "sync", "async"}) {
      Setting setting{.draft = GetParam(), .planner = planner, .batch = batch};
      if (batch > 1) {
        setting.blocks = 7;
        setting.keep_prefixes = true;
        setting.saved_bytes_max = std::string_view(planner) == "sync" ? 0 : int64_t{1} << 30;
        setting.arrivals = 2;
      }
      const Outcome run = RunAll(requests, config, setting);
      const std::string what = fmt::format("{} at batch {}", planner, batch);
      ExpectSameText(run, plain, what);
      if (HasFatalFailure()) return;
      EXPECT_GT(run.statistics.drafts.drafted, 0) << what;
      if (batch == 1) continue;
      EXPECT_GT(run.statistics.preempted, 0) << what;
      EXPECT_GT(run.statistics.cached_tokens, 0) << what;
    }
  }
}

TEST_P(DraftedText, EveryOtherPlannerAndLength) {
  const ModelConfig config = ConfigOf(GetParam());
  const std::vector<Request> requests = RandomRequests(std::min(g_requests, 40));
  const Outcome plain = RunAll(requests, config, {.draft = DraftChoice::kNone});
  for (const char* planner : {"static:0", "static:1", "static:5", "threshold:0.3", "lookahead", "auto"}) {
    ExpectSameText(
        RunAll(requests, config, {.draft = GetParam(), .planner = planner, .batch = 8, .arrivals = 3}), plain,
        planner);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Drafters, DraftedText,
                         testing::Values(DraftChoice::kDSpark, DraftChoice::kMtp, DraftChoice::kNgram),
                         [](const auto& param) {
                           return param.param == DraftChoice::kDSpark ? "DSpark"
                                  : param.param == DraftChoice::kMtp  ? "Mtp"
                                                                      : "Ngram";
                         });

// Not within noise: the drafts are the same bits.
TEST(Acceptance, ByPositionIsTheSameColdAfterAPrefixHitWhenPreemptedAndInABatch) {
  const ModelConfig config = SmallestDSparkConfig();
  // Long enough for hits and for memory to run out.
  std::vector<Request> requests = RandomRequests(14);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = TestPrompt(200 + 9 * static_cast<int64_t>(i), static_cast<int>(i) % 2);
    requests[i].sampling.max_tokens = 60 + 40 * static_cast<int64_t>(i % 7);
    requests[i].ignore_eos = true;
    requests[i].sampling.stop.clear();
    if (requests[i].sampling.temperature > 0) requests[i].sampling.temperature = 2.5;
  }
  const Outcome cold = RunAll(requests, config, {.draft = DraftChoice::kDSpark, .planner = "static:5"});
  EXPECT_GT(cold.statistics.drafts.total_accepted(), 0);
  int64_t preempted = 0, hits = 0, recomputed = 0;
  for (const int64_t saved_bytes_max : {int64_t{0}, int64_t{1} << 30}) {
    const Outcome run = RunAll(requests, config,
                               {.draft = DraftChoice::kDSpark,
                                .planner = "static:5",
                                .batch = 6,
                                .blocks = 7,
                                .keep_prefixes = true,
                                .saved_bytes_max = saved_bytes_max,
                                .arrivals = 10});
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_EQ(run.tokens[i], cold.tokens[i]);
      // A step whose drafts found no room is a plain one: the rounds behind it are others.
      if (run.results[i].drafts.without_room > 0) continue;
      EXPECT_EQ(run.results[i].drafts, cold.results[i].drafts) << "request " << i;
      preempted += run.results[i].preemptions;
      recomputed += saved_bytes_max == 0 ? run.results[i].preemptions : 0;
      hits += run.results[i].cached_tokens > 0 ? 1 : 0;
    }
  }
  EXPECT_GT(preempted, recomputed);
  EXPECT_GT(recomputed, 0);
  EXPECT_GT(hits, 0);
}

// MTP-1 leaves the last row of a kept prefix to be computed again; behind that its drafts are the cold ones.
TEST(Acceptance, OfMtpIsTheSameAfterAPrefixHitAndInABatch) {
  const ModelConfig config = SmallestMtpConfig();
  std::vector<Request> requests = RandomRequests(12);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = TestPrompt(280 + 5 * static_cast<int64_t>(i), 0);
    requests[i].sampling.max_tokens = 30;
    requests[i].ignore_eos = true;
    requests[i].sampling.stop.clear();
    if (requests[i].sampling.temperature > 0) requests[i].sampling.temperature = 2.5;
  }
  const Outcome cold = RunAll(requests, config, {.draft = DraftChoice::kMtp, .planner = "static:3"});
  EXPECT_GT(cold.statistics.drafts.total_accepted(), 0);
  const Outcome warm = RunAll(
      requests, config,
      {.draft = DraftChoice::kMtp, .planner = "static:3", .batch = 4, .keep_prefixes = true, .arrivals = 12});
  int64_t hits = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(warm.results[i].drafts, cold.results[i].drafts) << "request " << i;
    hits += warm.results[i].cached_tokens == 255 ? 1 : 0;
  }
  EXPECT_GT(hits, 0);
}

TEST(Rejection, RepeatsItsTextForASeedAndASchedule) {
  // The law of its texts is proven elsewhere, on the same code (tests/speculative); here it runs in the
  // engine.
  const ModelConfig config = SmallestDSparkConfig();
  std::vector<Request> requests = RandomRequests(30);
  for (Request& request : requests) {
    request.acceptance = Acceptance::kRejection;
    if (request.sampling.temperature > 0) request.sampling.temperature = 2.5;
  }
  const Setting setting{.draft = DraftChoice::kDSpark, .planner = "static:5", .batch = 8, .arrivals = 4};
  const Outcome once = RunAll(requests, config, setting);
  const Outcome again = RunAll(requests, config, setting);
  EXPECT_EQ(once.tokens, again.tokens);
  EXPECT_GT(once.statistics.drafts.total_accepted(), 0);
  // Greedy requests have one text, whatever the rule.
  const Outcome plain = RunAll(requests, config, {.draft = DraftChoice::kNone});
  for (size_t i = 0; i < requests.size(); ++i) {
    if (!requests[i].sampling.greedy()) continue;
    EXPECT_EQ(once.tokens[i], plain.tokens[i]) << "request " << i;
  }
}

// So that what drafts cost can be told from what another text costs.
TEST(Rejection, WithoutDraftsHasThePlainTextOfTheSeed) {
  std::vector<Request> requests = RandomRequests(30);
  for (Request& request : requests) request.acceptance = Acceptance::kRejection;
  const Outcome plain = RunAll(requests, SmallestDSparkConfig(), {.draft = DraftChoice::kNone});
  const Setting setting{.draft = DraftChoice::kDSpark, .planner = "static:0", .batch = 8, .arrivals = 4};
  ExpectSameText(RunAll(requests, SmallestDSparkConfig(), setting), plain, "static:0 by rejection");
}

TEST(Requests, CanDoWithoutDraftsAmongOthersThatHaveThem) {
  const ModelConfig config = SmallestDSparkConfig();
  std::vector<Request> requests = RandomRequests(10);
  for (size_t i = 0; i < requests.size(); i += 2) requests[i].drafts_max = 0;
  const Outcome run =
      RunAll(requests, config, {.draft = DraftChoice::kDSpark, .planner = "static:5", .batch = 10});
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i % 2 == 0) {
      EXPECT_EQ(run.results[i].drafts.drafted, 0);
      EXPECT_EQ(run.results[i].drafts.steps, run.results[i].completion_tokens);
    }
  }
  EXPECT_GT(run.statistics.drafts.drafted, 0);
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  return foresight::RunTests(argc, argv,
                             {{"requests", &foresight::g_requests}, {"seed", &foresight::g_seed}});
}
