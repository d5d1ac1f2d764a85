#include "speculative/planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "speculative/throughput_planners.h"

namespace foresight {
namespace {

using Lengths = std::vector<int>;

StepCosts Costs(std::vector<CostPoint> verify, double draft_ms = 1e-9) {
  StepCostTable table;
  table.draft_ms = table.draft_first_ms = {{1, draft_ms}};
  table.verify_ms[1] = std::move(verify);
  return StepCosts::Create(table, /*rows_max=*/4096, /*requests_max=*/256).value();
}

// Requests with their confidences, planned in a first step.
struct Step {
  std::vector<std::vector<float>> confidences;
  PlanningLimits limits = {.slots_max = 256, .drafts_max = 8, .rows_max = 4096};

  Lengths Plan(StepPlanning& planning) const {
    std::vector<RequestLoad> load;
    load.reserve(confidences.size());
    for (int r = 0; r < std::ssize(confidences); ++r) {
      load.push_back({.id = {.slot = r, .generation = 1},
                      .drafts_max = static_cast<int>(confidences[r].size()),
                      .coupled = true});
    }
    const std::span<const int> depths = planning.BeginStep({.requests = load, .context_tokens = 1});
    for (int r = 0; r < std::ssize(confidences); ++r) {
      planning.SetConfidences(r, std::span(confidences[r]).first(depths[r]));
    }
    const std::span<const int> plan = planning.Plan();
    Lengths lengths(plan.begin(), plan.end());
    planning.EndStep(lengths, std::nullopt);  // everything is accepted
    return lengths;
  }
  Lengths Plan(std::string_view planner, const std::optional<StepCosts>& costs = std::nullopt) const {
    StepPlanning planning = StepPlanning::Create(ParsePlanner(planner).value(), limits, costs).value();
    return Plan(planning);
  }
};

TEST(StaticPlanner, TakesWhatThereIs) {
  const Step step{{{.1f, .1f, .1f}, {}, {.9f}}};
  EXPECT_EQ(step.Plan("static:2"), (Lengths{2, 0, 1}));
  EXPECT_EQ(step.Plan("static:0"), (Lengths{0, 0, 0}));
}

TEST(ThresholdPlanner, StopsAtTheFirstDoubt) {
  const Step step{{{.9f, .6f, .5f, .9f}, {.4f, .9f}, {.7f}}};
  EXPECT_EQ(step.Plan("threshold:0.6"), (Lengths{2, 0, 1}));
  EXPECT_EQ(step.Plan("threshold:0"), (Lengths{4, 2, 1}));
}

TEST(SyncPlanner, StopsAtADipThatLookaheadCrosses) {
  // Two rows cost nearly twice one row, all others little more.
  const StepCosts costs = Costs({{1, 10}, {2, 19}, {8, 20}});
  const Step sure{{{.85f, .95f, .95f, .95f}}};
  EXPECT_EQ(sure.Plan("sync", costs), (Lengths{0}));
  EXPECT_EQ(sure.Plan("lookahead", costs), (Lengths{4}));
  const Step doubtful{{{.3f, .95f, .95f, .95f}}};
  EXPECT_EQ(doubtful.Plan("lookahead", costs), (Lengths{0}));
}

TEST(SyncPlanner, SpendsRowsWhereTheyAreAcceptedMostLikely) {
  // A row costs 0.2 of the step's fixed cost: with 3 requests and more, a token must be worth its price.
  const StepCosts costs = Costs({{1, 6}, {101, 106}});
  const Step step{{{.9f, .9f, .1f}, {.2f, .9f, .9f}, {.8f, .5f, .5f}}};
  EXPECT_EQ(step.Plan("sync", costs), (Lengths{2, 0, 1}));
}

// Planners by their definitions, on sorted lists.
struct Entry {
  float survival;  // the order is that of float32
  int j;
  int r;
  double exact;
  bool operator<(const Entry& other) const {
    return survival != other.survival ? survival > other.survival
                                      : std::tie(j, r) < std::tie(other.j, other.r);
  }
};

std::vector<Entry> Sorted(const Step& step) {
  std::vector<Entry> entries;
  for (int r = 0; r < std::ssize(step.confidences); ++r) {
    double survival = 1;
    for (int j = 0; j < std::ssize(step.confidences[r]); ++j) {
      survival *= step.confidences[r][j];
      if (static_cast<float>(survival) > 0) entries.push_back({static_cast<float>(survival), j, r, survival});
    }
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

Lengths Take(const std::vector<Entry>& entries, size_t num, size_t requests) {
  Lengths lengths(requests);
  for (size_t i = 0; i < num; ++i) lengths[entries[i].r] = std::max(lengths[entries[i].r], entries[i].j + 1);
  return lengths;
}

Step RandomStep(std::mt19937& random) {
  Step step;
  step.confidences.resize(1 + random() % 256);
  for (auto& confidences : step.confidences) {
    confidences.resize(random() % 9);
    for (float& c : confidences) {
      // Many ties, some zeros and ones.
      c = random() % 3 == 0 ? static_cast<float>(random() % 5) / 4
                            : static_cast<float>(random() % 1000) / 1000;
    }
  }
  return step;
}

StepCosts RandomCosts(std::mt19937& random) {
  std::vector<CostPoint> points = {{1, 1.0 + random() % 100}};
  for (int i = 0; i < 8; ++i) {
    points.push_back({points.back().count + 1 + static_cast<int>(random() % 150),
                      points.back().ms + static_cast<double>(random() % 100) / 5});
  }
  points.back().ms += 1;
  return Costs(points);
}

TEST(Planners, AgreeWithTheirDefinitions) {  // T16
  std::mt19937 random(3);
  size_t admitted = 0;
  for (int i = 0; i < 300; ++i) {
    SCOPED_TRACE(i);
    const Step step = RandomStep(random);
    const StepCosts costs = RandomCosts(random);
    const std::vector<Entry> entries = Sorted(step);
    const size_t requests = step.confidences.size();
    const std::span<const double> ms = costs.VerifyMs(1);
    const auto any = [](const auto& c) { return !c.empty(); };
    const double draft =
        std::any_of(step.confidences.begin(), step.confidences.end(), any) ? costs.DraftMs(1) : 0;
    const auto theta = [&](double tokens, size_t k) { return tokens / (draft + ms[requests + k]); };

    size_t sync = 0;
    size_t global = 0;
    double tokens = static_cast<double>(requests);
    double best = theta(tokens, 0);
    bool stopped = false;
    for (size_t k = 1; k <= entries.size(); ++k) {
      const double before = theta(tokens, k - 1);
      tokens += entries[k - 1].exact;
      stopped |= theta(tokens, k) <= before * (1 + 1e-12);
      if (!stopped) sync = k;
      if (theta(tokens, k) > best * (1 + 1e-12)) {
        best = theta(tokens, k);
        global = k;
      }
    }
    ASSERT_EQ(step.Plan("sync", costs), Take(entries, sync, requests));
    ASSERT_EQ(step.Plan("global", costs), Take(entries, global, requests));
    admitted += sync;
  }
  EXPECT_GT(admitted, 1000u);
}

// Bends of the costs inside of a bin's equal survivals, at their ends and beyond them all.
TEST(CapacityPlan, IsTheBestOfAllNumbersOfDrafts) {
  std::mt19937 random(6);
  CapacityPlan plan;
  int inside = 0;
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    const StepCosts costs = RandomCosts(random);
    const std::vector<RequestLoad> requests(1 + random() % 64);
    const StepValue value({.requests = requests, .other_rows = static_cast<int>(random() % 100)}, costs,
                          static_cast<int>(requests.size()), /*draft_tokens=*/1);
    std::vector<double> survivals(random() % 400);
    const unsigned values = i % 2 == 0 ? 4 : 128;  // some hundred to a bin, or a few
    for (double& survival : survivals) survival = (random() % values * (128 / values) + .5) / 128;
    std::sort(survivals.begin(), survivals.end(), std::greater<>());
    plan.Clear();
    for (double survival : survivals) plan.Add(survival);

    const auto theta = [&](int drafts) {
      return std::accumulate(survivals.begin(), survivals.begin() + drafts, value.requests()) /
             value.Ms(drafts);
    };
    double best = theta(0);
    for (int drafts = 1; drafts <= std::ssize(survivals); ++drafts) best = std::max(best, theta(drafts));
    const CapacityPlan::Best found = plan.Maximize(value);
    ASSERT_NEAR(found.tokens_per_ms, best, 1e-12 * best);
    ASSERT_NEAR(theta(found.drafts), best, 1e-12 * best);
    inside += found.drafts > 0 && found.drafts < std::ssize(survivals) &&
              survivals[found.drafts - 1] == survivals[found.drafts];
  }
  EXPECT_GT(inside, 20);
}

// Survivals lie anywhere in their bins.
TEST(CapacityPlan, LosesLittleByTakingSurvivalsForTheirBinsMean) {
  std::mt19937 random(7);
  CapacityPlan plan;
  double most_lost = 0;
  for (int i = 0; i < 2000; ++i) {
    const StepCosts costs = RandomCosts(random);
    const std::vector<RequestLoad> requests(1 + random() % 64);
    const StepValue value({.requests = requests}, costs, static_cast<int>(requests.size()),
                          /*draft_tokens=*/1);
    std::vector<double> survivals(1 + random() % 400);
    for (double& survival : survivals) {
      survival = std::pow(static_cast<double>(random()) / std::mt19937::max(), 1 << i % 4);
    }
    std::sort(survivals.begin(), survivals.end(), std::greater<>());
    plan.Clear();
    for (double survival : survivals) plan.Add(survival);
    const int found = plan.Maximize(value).drafts;
    double best = 0, of_found = 0;
    double tokens = value.requests();
    for (int drafts = 0; drafts <= std::ssize(survivals); ++drafts) {
      const double theta = tokens / value.Ms(drafts);
      best = std::max(best, theta);
      if (drafts == found) of_found = theta;
      if (drafts < std::ssize(survivals)) tokens += survivals[drafts];
    }
    most_lost = std::max(most_lost, 1 - of_found / best);
  }
  EXPECT_GT(most_lost, 0);
  EXPECT_LT(most_lost, 2e-3);
}

TEST(AsyncPlanner, VerifiesExactlyItsCapacityWithTies) {  // T17
  std::mt19937 random(4);
  for (int i = 0; i < 100; ++i) {
    SCOPED_TRACE(i);
    Step step;
    step.confidences.assign(1 + random() % 64, std::vector<float>(random() % 9, 1.0f));
    const std::vector<Entry> entries = Sorted(step);
    RoundConfidences round(256, 8);
    Lengths depths;
    for (const auto& confidences : step.confidences) depths.push_back(static_cast<int>(confidences.size()));
    round.Begin(depths, false);
    Frontier frontier(round);
    FrontierQueue queue(256);
    const int capacity = static_cast<int>(random() % 200);
    AdmitMostLikely(frontier, capacity, queue);
    const size_t want = std::min<size_t>(capacity, entries.size());
    EXPECT_EQ(Lengths(round.admitted().begin(), round.admitted().end()),
              Take(entries, want, step.confidences.size()));
    EXPECT_EQ(std::accumulate(round.admitted().begin(), round.admitted().end(), size_t{0}), want);
  }
}

// A step has the rows that were planned for it, also where confidences come out as 0.
TEST(AsyncPlanner, SpendsItsCapacityOnHopelessDrafts) {
  RoundConfidences round(/*requests_max=*/3, /*drafts_max=*/3);
  FrontierQueue queue(3);
  const auto plan = [&](int capacity) {
    round.Begin(Lengths{3, 2, 3}, /*all_coupled=*/false);
    round.Set(0, std::vector<float>{.5f, 0, .9f});
    round.Set(1, std::vector<float>{0, .9f});
    round.Set(2, std::vector<float>{1, 1e-30f, 1e-30f});
    Frontier frontier(round);
    AdmitMostLikely(frontier, capacity, queue);
    return Lengths(round.admitted().begin(), round.admitted().end());
  };
  EXPECT_EQ(plan(3), (Lengths{1, 0, 2}));
  EXPECT_EQ(plan(4), (Lengths{1, 1, 2}));
  EXPECT_EQ(plan(6), (Lengths{2, 2, 2}));
  EXPECT_EQ(plan(7), (Lengths{3, 2, 2}));
  EXPECT_EQ(plan(9), (Lengths{3, 2, 3}));
}

TEST(AsyncPlanner, GoesByConfidencesTwoStepsOld) {
  // A draft must be at least 0.5 likely to be worth its row (1 request, rows of 10 + 5 ms).
  const StepCosts costs = Costs({{1, 10}, {2, 15}, {3, 20}});
  StepPlanning planning = StepPlanning::Create(ParsePlanner("async").value(),
                                               {.slots_max = 4, .drafts_max = 1, .rows_max = 64}, costs)
                              .value();
  const Step sure{{{.99f}}};
  const Step doubtful{{{.01f}}};
  EXPECT_EQ(sure.Plan(planning), (Lengths{1}));      // nothing known: hopeful
  EXPECT_EQ(doubtful.Plan(planning), (Lengths{1}));  // still by the mean of one sure step
  EXPECT_EQ(doubtful.Plan(planning), (Lengths{1}));  // by the first step
  EXPECT_EQ(sure.Plan(planning), (Lengths{0}));      // by the second
  EXPECT_EQ(sure.Plan(planning), (Lengths{0}));
  EXPECT_EQ(sure.Plan(planning), (Lengths{1}));
}

TEST(StepPlanning, ShortensDraftsToTheRowsOfAStep) {
  Step step{{{1, 1, 1, 1}, {1, 1, 1, 1}, {1}}};
  step.limits.rows_max = 8;  // 3 + 5 drafts
  EXPECT_EQ(step.Plan("static:8"), (Lengths{2, 2, 1}));
  step.limits.rows_max = 7;
  EXPECT_EQ(step.Plan("static:8"), (Lengths{2, 1, 1}));
  step.limits.rows_max = 3;
  EXPECT_EQ(step.Plan("static:8"), (Lengths{0, 0, 0}));
}

TEST(StepPlanning, TakesShorterDraftsAndConfidencesFromHistory) {
  StepPlanning planning =
      StepPlanning::Create(ParsePlanner("threshold:0.79").value(),
                           {.slots_max = 2, .drafts_max = 3, .rows_max = 64}, std::nullopt)
          .value();
  const std::vector<RequestLoad> load = {
      {.id = {.slot = 1, .generation = 7}, .drafts_max = 3, .coupled = false}};
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(planning.BeginStep({.requests = load, .context_tokens = 1})[0], 3);
    planning.SetConfidencesFromHistory(0, 2);
    const int length = planning.Plan()[0];
    EXPECT_LE(length, 2);
    EXPECT_EQ(length, i == 0 ? 2 : 1);  // the second draft is never accepted
    planning.EndStep(std::vector<int>{std::min(length, 1)}, std::nullopt);
  }
  EXPECT_GT(planning.history().AcceptanceRate(load[0].id, 0), 0.9);
}

// A plan made without confidences is judged, and history is told, by those that come behind it.
TEST(StepPlanning, TakesConfidencesBehindThePlan) {
  StepPlanning planning =
      StepPlanning::Create(ParsePlanner("static:2").value(),
                           {.slots_max = 1, .drafts_max = 3, .rows_max = 64}, std::nullopt)
          .value();
  const std::vector<RequestLoad> load = {
      {.id = {.slot = 0, .generation = 1}, .drafts_max = 3, .coupled = false}};
  for (int i = 0; i < 3; ++i) {
    planning.BeginStep({.requests = load, .context_tokens = 1});
    EXPECT_FALSE(planning.ReadsConfidences());
    planning.ExpectConfidences(0, 2);
    EXPECT_EQ(planning.Plan()[0], 2);
    planning.SetLateConfidences(0, std::vector<float>{.25f, .5f});
    planning.EndStep(std::vector<int>{0}, std::nullopt);
  }
  // Its own begins at the first guess for all, of which it forgets a sixteenth a step.
  const double expected = .25 + (.8 - .25) * std::pow(15.0 / 16, 3);
  EXPECT_NEAR(planning.history().MeanConfidence(load[0].id, 0), expected, .02);
}

// Neither a step that a device has yet to record nor one with rows of prompts says what others will take.
TEST(StepPlanning, LearnsCostsFromExamplesOnly) {
  const std::vector<RequestLoad> load = {
      {.id = {.slot = 0, .generation = 1}, .drafts_max = 0, .coupled = false}};
  for (int kind = 0; kind < 3; ++kind) {
    StepPlanning planning =
        StepPlanning::Create(ParsePlanner("static:2").value(),
                             {.slots_max = 1, .drafts_max = 3, .rows_max = 64}, Costs({{1, 10}, {64, 20}}))
            .value();
    planning.BeginStep({.requests = load, .context_tokens = 1});
    planning.Plan();
    planning.EndStep(std::vector<int>{0}, StepTimes{.rows = 1,
                                                    .context_tokens = 1,
                                                    .verify_ms = 100,
                                                    .has_prompts = kind == 1,
                                                    .is_warm_up = kind == 2});
    if (kind == 0) {
      EXPECT_GT(planning.costs()->scale(), 1);
    } else {
      EXPECT_EQ(planning.costs()->scale(), 1);
    }
  }
}

// A request's first draft, and one behind a pause, read more than those that follow.
TEST(StepPlanning, LearnsNoCostsFromDraftsBehindAPause) {
  StepPlanning planning =
      StepPlanning::Create(ParsePlanner("static:1").value(),
                           {.slots_max = 1, .drafts_max = 1, .rows_max = 64}, Costs({{1, 10}, {64, 20}}, 5))
          .value();
  // Returns by how much the cost of a draft has grown.
  const auto step = [&](uint32_t generation, int drafts) {
    const double before = planning.costs()->DraftMs(1);
    const std::vector<RequestLoad> load = {
        {.id = {.slot = 0, .generation = generation}, .drafts_max = drafts, .coupled = false}};
    planning.BeginStep({.requests = load, .context_tokens = 1});
    planning.SetConfidencesFromHistory(0, drafts);
    planning.Plan();
    planning.EndStep(std::vector<int>{0}, StepTimes{.draft_requests = drafts,
                                                    .draft_tokens = drafts,
                                                    .rows = 1 + drafts,
                                                    .context_tokens = 1,
                                                    .draft_ms = 9.0 * drafts,
                                                    .verify_ms = 10});
    return planning.costs()->DraftMs(1) - before;
  };
  EXPECT_EQ(step(1, 1), 0);
  EXPECT_GT(step(1, 1), 0);
  EXPECT_EQ(step(1, 0), 0);
  EXPECT_EQ(step(1, 1), 0);
  EXPECT_GT(step(1, 1), 0);
  EXPECT_EQ(step(2, 1), 0);
  EXPECT_GT(step(2, 1), 0);
}

TEST(RoundConfidences, LateOnesSayWhatWasToBeExpected) {
  RoundConfidences round(/*requests_max=*/1, /*drafts_max=*/3);
  round.Begin(std::vector<int>{3}, /*all_coupled=*/false);
  round.Set(0, std::vector<float>{1, 1, 1});
  Frontier frontier(round);
  frontier.Admit(0);
  frontier.Admit(0);
  round.SetLate(0, std::vector<float>{.5f, .25f, .9f});
  EXPECT_EQ(round.expected()[0], .5 + .125);
  EXPECT_EQ(round.of(0)[2], .9f);
  EXPECT_EQ(round.admitted()[0], 2);
}

TEST(ParsePlanner, NamesComeBack) {
  for (const char* text : {"auto", "static:3", "threshold:0.6", "sync", "lookahead", "async", "global"}) {
    const Result<PlannerOptions> options = ParsePlanner(text);
    ASSERT_TRUE(options.ok()) << text;
    EXPECT_EQ(FormatPlanner(*options), text);
  }
  for (const char* text : {"", "best", "static", "static:", "static:x", "static:-1", "static:33",
                           "threshold:1.5", "threshold:nan", "threshold:0.5x", "sync:1"}) {
    EXPECT_EQ(ParsePlanner(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

TEST(StepPlanning, RefusesToPlanWithoutCosts) {
  const PlanningLimits limits = {.slots_max = 1, .drafts_max = 2, .rows_max = 8};
  for (const char* text : {"auto", "sync", "lookahead", "async", "global"}) {
    const Status status = StepPlanning::Create(ParsePlanner(text).value(), limits, std::nullopt).status();
    EXPECT_NE(status.message().find("needs the costs of a step"), std::string::npos) << text;
  }
  EXPECT_TRUE(StepPlanning::Create(ParsePlanner("static:2").value(), limits, std::nullopt).ok());
}

TEST(FrontierDeathTest, NothingIsShownAheadOfTime) {
  RoundConfidences round(1, 2);
  round.Begin(Lengths{2}, /*all_coupled=*/false);
  round.Set(0, std::vector<float>{.5f, .25f});
  Frontier frontier(round);
  EXPECT_EQ(frontier.confidence(0), .5);
  EXPECT_DEATH(frontier.Unrestricted(), "coupled rule only");
  frontier.Admit(0);
  EXPECT_EQ(frontier.confidence(0), .25);
  EXPECT_EQ(frontier.survival(0), .125);
  frontier.Admit(0);
  EXPECT_EQ(frontier.survival(0), 0);
  EXPECT_DEATH(frontier.Admit(0), "exhausted");
  EXPECT_DEATH(round.Set(0, std::vector<float>{NAN}), "");
}

}  // namespace
}  // namespace foresight
