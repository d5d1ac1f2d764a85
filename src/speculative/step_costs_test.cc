#include "speculative/step_costs.h"

#include <gtest/gtest.h>

#include <random>

#include "speculative/file_damage.h"

namespace foresight {
namespace {

StepCostTable Table() {
  StepCostTable table{.model = "xxh:1",
                      .build = "abc cpu_avx2 2 threads",
                      .device = "a \"machine\"",
                      .drafts_max = 5,
                      .host_ms = 0.5,
                      .wait_ms = 0.25,
                      .draft_ms = {{1, 2}, {8, 3}},
                      .draft_first_ms = {{1, 1.2}, {8, 1.5}},
                      .verify_ms = {}};
  table.verify_ms[2048] = {{1, 10}, {2, 12}, {4, 11}, {8, 20}};
  table.verify_ms[512] = {{1, 9}, {8, 16}};
  return table;
}

TEST(StepCosts, InterpolatesAndNeverFalls) {
  const StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  const std::span<const double> ms = costs.VerifyMs(1000);
  ASSERT_EQ(ms.size(), 17u);
  EXPECT_EQ(ms[0], 10);
  EXPECT_EQ(ms[1], 10);
  EXPECT_EQ(ms[2], 12);
  EXPECT_EQ(ms[3], 12);
  EXPECT_EQ(ms[4], 12);
  EXPECT_EQ(ms[6], 16);
  EXPECT_EQ(ms[8], 20);
  EXPECT_EQ(ms[16], 36);  // the last slope goes on
  EXPECT_EQ(costs.DraftMs(0), 0);
  EXPECT_EQ(costs.DraftMs(1), 2);
  EXPECT_NEAR(costs.DraftMs(15), 4, 1e-12);
  EXPECT_EQ(costs.DraftMs(1, 5), 2);
  EXPECT_NEAR(costs.DraftMs(1, 1), 1.2, 1e-12);
  EXPECT_NEAR(costs.DraftMs(1, 3), 1.6, 1e-12);
  EXPECT_NEAR(costs.DraftMs(15, 1), 1.8, 1e-12);
  EXPECT_NEAR(costs.DraftMs(15, 2), 1.8 + 2.2 / 4, 1e-12);
}

TEST(StepCosts, TakesTheBucketThatHoldsTheContext) {
  const StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  EXPECT_EQ(costs.VerifyMs(1)[1], 9);
  EXPECT_EQ(costs.VerifyMs(512)[1], 9);
  EXPECT_EQ(costs.VerifyMs(513)[1], 10);
  EXPECT_EQ(costs.VerifyMs(1'000'000)[1], 10);
}

TEST(StepCosts, FollowsAMachineThatSlowsDown) {
  StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  for (int i = 0; i < 200; ++i) {
    costs.Observe({.rows = 8, .context_tokens = 512, .verify_ms = 24, .host_ms = 0.75});
  }
  EXPECT_NEAR(costs.scale() * costs.VerifyMs(512)[8], 24, 0.01);
  EXPECT_NEAR(costs.VerifyMs(512)[8], 16, 2);  // most of it is the scale: ratios are about as they were
  EXPECT_EQ(costs.VerifyMs(512)[1], 9);
  const StepCostTable refreshed = costs.Refreshed();
  EXPECT_NEAR(refreshed.verify_ms.at(512)[1].ms, 24, 0.2);
  EXPECT_NEAR(refreshed.draft_ms[0].ms, 3, 0.3);
  EXPECT_NEAR(refreshed.host_ms, 0.75, 0.01);
}

TEST(StepCosts, DearDraftsAreNoSlowMachine) {
  StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  for (int i = 0; i < 500; ++i) {
    costs.Observe({.draft_requests = 1,
                   .draft_tokens = 5,
                   .rows = 8,
                   .context_tokens = 512,
                   .draft_ms = 6,
                   .verify_ms = 24,
                   .host_ms = 0.5});
  }
  EXPECT_EQ(costs.scale(), 1);
  EXPECT_NEAR(costs.DraftMs(1), 6, 0.1);
  EXPECT_NEAR(costs.VerifyMs(512)[8], 24, 0.1);
  EXPECT_EQ(costs.VerifyMs(512)[1], 9);
}

TEST(StepCosts, LearnsWhichStepsCostMore) {
  StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  for (int i = 0; i < 500; ++i) {
    costs.Observe({.rows = 1, .context_tokens = 512, .verify_ms = 9, .host_ms = 0.5});
    costs.Observe({.rows = 8, .context_tokens = 512, .verify_ms = 32, .host_ms = 0.5});
  }
  const StepCostTable refreshed = costs.Refreshed();
  EXPECT_NEAR(refreshed.verify_ms.at(512)[0].ms, 9, 0.5);
  EXPECT_NEAR(refreshed.verify_ms.at(512)[1].ms, 32, 1.5);
}

// Whatever steps teach of some counts, all are as if they had been made anew from the points.
TEST(StepCosts, StaysBetweenItsPoints) {
  std::mt19937 random(2);
  const auto number = [&](double from, double to) {
    return std::uniform_real_distribution(from, to)(random);
  };
  for (int i = 0; i < 20; ++i) {
    StepCostTable table = Table();
    for (auto* points : {&table.draft_ms, &table.verify_ms[512]}) {
      *points = {{1 + static_cast<int>(random() % 3), 9}};
      while (random() % 8 != 0) {
        points->push_back({points->back().count + 1 + static_cast<int>(random() % 8), number(8, 12)});
      }
    }
    table.verify_ms[512].back().ms = 13;
    if (table.verify_ms[512].size() == 1) table.verify_ms[512].push_back({70, 14});
    StepCosts costs = StepCosts::Create(table, 32, 16).value();
    for (int step = 0; step < 300; ++step) {
      costs.Observe({.draft_requests = static_cast<int>(random() % 17),
                     .draft_tokens = 5,
                     .rows = 1 + static_cast<int>(random() % 32),
                     .context_tokens = 100,
                     .draft_ms = number(4, 20),
                     .verify_ms = number(4, 20),
                     .host_ms = number(.3, .7)});
      const StepCosts anew = StepCosts::Create(costs.Refreshed(), 32, 16).value();
      for (int count = 0; count <= 32; ++count) {
        const double ms = costs.scale() * costs.VerifyMs(100)[count];
        ASSERT_NEAR(ms, anew.VerifyMs(100)[count], 1e-12 * ms) << count;
        if (count > 16) continue;
        ASSERT_NEAR(costs.scale() * costs.DraftMs(count), anew.DraftMs(count), 1e-12 * ms) << count;
      }
    }
  }
}

// What drafts and rows took together says nothing of either alone, whichever of the two times it lies in.
TEST(StepCosts, OneTimeForDraftsAndRowsKeepsTheirProportion) {
  StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  const double draft_ms = costs.DraftMs(1);
  const double verify_ms = costs.VerifyMs(100)[8];
  for (int i = 0; i < 250; ++i) {
    costs.Observe({.draft_requests = 1,
                   .draft_tokens = costs.Refreshed().drafts_max,
                   .rows = 8,
                   .context_tokens = 100,
                   .draft_ms = 0,
                   .verify_ms = 1.2 * (draft_ms + verify_ms),
                   .host_ms = costs.HostMs(),
                   .draft_is_apart = false});
  }
  EXPECT_NEAR(costs.DraftMs(1), 1.2 * draft_ms, .02 * draft_ms);
  EXPECT_NEAR(costs.VerifyMs(100)[8], 1.2 * verify_ms, .02 * verify_ms);
}

TEST(StepCosts, APauseDoesLittleHarm) {
  StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  costs.Observe({.rows = 1, .context_tokens = 512, .verify_ms = 1e6, .host_ms = 0.5});
  EXPECT_LE(costs.scale(), 1.07);
  EXPECT_LE(costs.VerifyMs(512)[1], 9 * 1.03);
}

TEST(StepCosts, AskForAPlainStepWhereDraftedOnesBecomeFaster) {
  StepCosts costs = StepCosts::Create(Table(), 16, 16).value();
  const double drafted_ms = costs.DraftMs(1) + costs.VerifyMs(512)[8];
  const auto drafted = [&](double times) {
    costs.Observe({.draft_requests = 1,
                   .draft_tokens = costs.Refreshed().drafts_max,
                   .rows = 8,
                   .context_tokens = 512,
                   .draft_ms = times * costs.scale() * (drafted_ms - costs.VerifyMs(512)[8]),
                   .verify_ms = times * costs.scale() * costs.VerifyMs(512)[8],
                   .host_ms = 0.5});
  };
  for (int i = 0; i < 20; ++i) drafted(1.2);
  EXPECT_FALSE(costs.NeedsPlainStep());
  costs = StepCosts::Create(Table(), 16, 16).value();
  int steps = 0;
  for (; !costs.NeedsPlainStep(); ++steps) drafted(0.5);
  EXPECT_LE(steps, 13);
  // Until plain ones are as fast as expected again.
  const double plain_ms = costs.VerifyMs(512)[1];
  int plain = 0;
  for (; costs.NeedsPlainStep(); ++plain) {
    costs.Observe({.rows = 1, .context_tokens = 512, .verify_ms = 0.5 * plain_ms, .host_ms = 0.25});
  }
  EXPECT_NEAR(costs.scale(), 0.6, 0.05);
  EXPECT_LE(plain, 30);
}

TEST(StepCosts, RefusesWhatCantBe) {
  const auto refused = [](auto change) {
    StepCostTable table = Table();
    change(table);
    const Status status = StepCosts::Create(table, 16, 16).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  refused([](StepCostTable& t) { t.verify_ms.clear(); });
  refused([](StepCostTable& t) { t.verify_ms[512].clear(); });
  refused([](StepCostTable& t) { t.draft_ms = {{2, 1}, {2, 2}}; });
  refused([](StepCostTable& t) { t.draft_ms = {{0, 1}}; });
  refused([](StepCostTable& t) { t.draft_ms = {{1, 0}}; });
  refused([](StepCostTable& t) { t.draft_first_ms.clear(); });
  refused([](StepCostTable& t) { t.host_ms = -1; });
  refused([](StepCostTable& t) { t.wait_ms = -1; });
  EXPECT_NE(refused([](StepCostTable& t) {
              t.verify_ms = {{512, {{1, 5}, {8, 5}}}, {1024, {{1, 5}}}};
            }).find("no time grows"),
            std::string::npos);
}

TEST(MedianMs, OfOddAndEven) {
  std::vector<double> odd = {3, 1, 2};
  std::vector<double> even = {4, 1, 2, 3};
  EXPECT_EQ(MedianMs(odd), 2);
  EXPECT_EQ(MedianMs(even), 2.5);
}

TEST(StepCostsFile, ComesBack) {
  const Result<StepCostTable> read = ParseStepCosts(FormatStepCosts(Table()));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(FormatStepCosts(*read), FormatStepCosts(Table()));
  EXPECT_EQ(read->device, Table().device);
  EXPECT_EQ(read->wait_ms, 0.25);
  EXPECT_EQ(read->verify_ms.at(2048)[3].ms, 20);
}

TEST(StepCostsFile, IsRefusedForAnotherModelBuildOrLength) {
  const StepCostTable table = Table();
  EXPECT_TRUE(CheckStepCosts(table, table.model, table.build, 5).ok());
  EXPECT_NE(CheckStepCosts(table, "x", table.build, 5).message().find("another model"), std::string::npos);
  EXPECT_NE(CheckStepCosts(table, table.model, "x", 5).message().find("another build"), std::string::npos);
  EXPECT_NE(CheckStepCosts(table, table.model, table.build, 7).message().find("draft length"),
            std::string::npos);
}

TEST(StepCostsFile, DamageIsAnError) {
  const std::string good = FormatStepCosts(Table());
  const auto replaced = [&](std::string_view from, std::string_view to) { return Replaced(good, from, to); };
  for (const std::string& bad :
       {std::string("[]"), replaced("dspark-sps", "sps"), replaced("\"version\": 4", "\"version\": 3"),
        replaced("[1, 2]", "[1]"), replaced("[1, 2]", "[1.5, 2]"), replaced("[1, 2]", "[1, -2]"),
        replaced("[1, 2]", "{}"), replaced("\"2048\"", "\"2k\""), replaced("\"2048\"", "\"-1\""),
        replaced("\"2048\"", "\"99999999999999999999\""),
        replaced("\"host_ms\": 0.5", "\"host_ms\": \"0.5\""), replaced("[8, 3]", "[1, 3]"),
        replaced("[8, 1.5]", "[1, 1.5]"), replaced("[8, 1.5]", "[8, 0]"),
        replaced("\"gamma\": 5", "\"gamma\": -5")}) {
    const Status status = ParseStepCosts(bad).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(status.message().rfind("step costs: ", 0), 0u) << status.message();
  }
  for (size_t cut = 0; cut < good.size() - 1; ++cut) EXPECT_FALSE(ParseStepCosts(good.substr(0, cut)).ok());
}

}  // namespace
}  // namespace foresight
