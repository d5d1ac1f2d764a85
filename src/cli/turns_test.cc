#include "cli/turns.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/rng.h"

namespace foresight {
namespace {

// A machine with a clock of its own, whose speed drifts and whose steps are disturbed now and then.
class Machine {
 public:
  explicit Machine(int64_t seed) : random_({.seed = seed}) {}

  // The seconds of a step that takes so many at full speed.
  double Step(double seconds) {
    const double drift = 1 + 0.2 * std::sin(now_ / 3) + 0.1 * std::sin(now_ / 0.7);
    const double noise = random_[count_] % 50 == 0 ? 1.5 : 1 + 0.1 * random_.Uniform(count_);
    ++count_;
    now_ += seconds * drift * noise;
    return seconds * drift * noise;
  }

 private:
  double now_ = 0;
  RandomSequence random_;
  uint64_t count_ = 0;
};

// Does its work in steps of so much each.
Worker Steps(Machine& machine, double step_seconds, int64_t step_amount = 1) {
  return [&machine, step_seconds, step_amount, done = int64_t{0}](int64_t amount) mutable -> Result<double> {
    double seconds = 0;
    for (; done < amount; done += step_amount) seconds += machine.Step(step_seconds);
    return seconds;
  };
}

struct Estimates {
  RatioEstimate slower, same;
};

// Of one that is slower by 3 %, and of one that does what the first does.
Estimates Measure(int64_t seed, int64_t turns) {
  Machine machine(seed);
  const std::vector<Worker> workers = {Steps(machine, 0.010), Steps(machine, 0.010 / 0.97),
                                       Steps(machine, 0.010)};
  TurnTimes times(3);
  EXPECT_TRUE(times.Take(workers, 1200, turns).ok());
  return {TimesFaster(times.seconds(0), times.seconds(1)), TimesFaster(times.seconds(0), times.seconds(2))};
}

TEST(TurnTimes, TellThreePercentOnAMachineThatDriftsByTwenty) {
  const Estimates turns = Measure(1, /*turns=*/120);
  EXPECT_NEAR(turns.slower.value, 0.97, 0.01);
  EXPECT_LT(turns.slower.error, 0.015);
  EXPECT_LT(turns.slower.high(), 1);
  EXPECT_LT(turns.same.low(), 1);
  EXPECT_GT(turns.same.high(), 1);
  // One after the other they tell nothing.
  EXPECT_GT(std::abs(Measure(1, /*turns=*/1).same.value - 1), 0.03);
}

TEST(TurnTimes, IntervalsHoldTheTruthAsOftenAsTheySay) {
  int held = 0;
  constexpr int kRuns = 400;
  for (int64_t seed = 0; seed < kRuns; ++seed) {
    const RatioEstimate ratio = Measure(seed, /*turns=*/60).slower;
    held += ratio.low() < 0.97 && 0.97 < ratio.high();
  }
  EXPECT_GT(held, 0.92 * kRuns);
  EXPECT_LT(held, 0.99 * kRuns);
}

TEST(TurnTimes, LongStepsOfOneDoNotCountAsNoise) {
  // Eight times the work in a step of eight times the length: every other turn it has nothing to do.
  Machine machine(1);
  const std::vector<Worker> workers = {Steps(machine, 0.010), Steps(machine, 0.080, 8)};
  TurnTimes times(2);
  ASSERT_TRUE(times.Take(workers, 1600, 400).ok());
  const RatioEstimate ratio = TimesFaster(times.seconds(0), times.seconds(1));
  EXPECT_NEAR(ratio.value, 1, 0.02);
  EXPECT_LT(ratio.error, 0.03);
}

TEST(TurnTimes, EveryoneComesEverywhereAndBehindEveryone) {
  constexpr int kWorkers = 4;
  constexpr int kTurns = 1200;
  std::vector<int> calls;
  std::vector<Worker> workers;
  std::vector<int64_t> done(kWorkers, 0);
  for (int i = 0; i < kWorkers; ++i) {
    workers.push_back([&, i](int64_t amount) -> Result<double> {
      EXPECT_GT(amount, done[i]);
      done[i] = amount;
      calls.push_back(i);
      return 1.0;
    });
  }
  TurnTimes times(kWorkers);
  ASSERT_TRUE(times.Take(workers, 5000, kTurns).ok());
  EXPECT_EQ(done, std::vector<int64_t>(kWorkers, 5000));
  ASSERT_EQ(std::ssize(calls), kWorkers * kTurns);
  std::map<std::pair<int, int>, int> places, successions;
  for (int64_t n = 0; n < std::ssize(calls); ++n) {
    ++places[{calls[n], static_cast<int>(n % kWorkers)}];
    if (n > 0) ++successions[{calls[n - 1], calls[n]}];
  }
  for (int i = 0; i < kWorkers; ++i) {
    EXPECT_EQ(std::ssize(times.seconds(i)), kTurns);
    for (int k = 0; k < kWorkers; ++k) {
      const int place = places[{i, k}];
      const int succession = successions[{i, k}];
      EXPECT_NEAR(place, kTurns / kWorkers, 60);
      EXPECT_NEAR(succession, i == k ? 0 : kTurns / (kWorkers - 1), i == k ? 0 : 70);
    }
  }
}

TEST(TurnTimes, EndWithTheFirstError) {
  int calls = 0;
  const std::vector<Worker> workers(2, [&](int64_t) -> Result<double> {
    if (++calls == 5) return Error(StatusCode::kCancelled, "interrupted");
    return 1.0;
  });
  TurnTimes times(2);
  EXPECT_EQ(times.Take(workers, 100, 10).code(), StatusCode::kCancelled);
  EXPECT_EQ(calls, 5);
}

TEST(TimesFaster, IsTheRatioOfSumsWithStudentsInterval) {
  const std::vector<double> base = {1, 1, 2, 2, 3, 3};
  const std::vector<double> other = {1, 2, 2, 2, 3, 2};
  // Groups of two turns have 2, 4, 6 and 3, 4, 5 seconds: rests of -1, 0, 1, and 4.303 for two degrees.
  const RatioEstimate ratio = TimesFaster(base, other);
  EXPECT_DOUBLE_EQ(ratio.value, 1);
  EXPECT_NEAR(ratio.error, 4.303 * std::sqrt(2 * 3 / 2.0) / 12, 1e-12);
  // Too few to tell.
  const RatioEstimate of_few = TimesFaster({base.data(), 5}, {other.data(), 5});
  EXPECT_TRUE(std::isinf(of_few.error));
  EXPECT_EQ(ratio.ToText("+-"), "1.000 +- 0.621");
  EXPECT_EQ(of_few.ToText("+-"), "0.900");
}

}  // namespace
}  // namespace foresight
