#include "scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace foresight {
namespace {

constexpr int64_t kBlock = 4;  // tokens

// Blocks by arithmetic, and what a test wants to know of the calls.
class TestMemory : public SequenceMemory {
 public:
  explicit TestMemory(int64_t blocks) : blocks_(blocks) {}

  bool Admit(SequenceHandle s, int64_t headroom, Admission* admission) override {
    if (BlocksFor(known[s] + 1) + headroom > free()) return false;
    EXPECT_EQ(reserved.count(s), 0u);
    reserved[s] = kept[s];
    admission->computed = kept[s];
    admission->stops = stops[s];
    return true;
  }
  bool Reserve(SequenceHandle s, int rows) override {
    EXPECT_EQ(reserved.count(s), 1u);
    const int64_t wanted = computed[s] + rows;
    if (BlocksFor(wanted) - BlocksFor(reserved[s]) > free()) return false;
    reserved[s] = std::max(reserved[s], wanted);
    return true;
  }
  void Preempt(SequenceHandle s) override {
    EXPECT_EQ(reserved.count(s), 1u);
    reserved.erase(s);
    preempted.push_back(s);
    kept[s] = saves_states ? computed[s] : 0;
    computed[s] = kept[s];
  }
  int64_t free() const {
    int64_t used = 0;
    for (const auto& [s, tokens] : reserved) used += BlocksFor(tokens);
    EXPECT_LE(used, blocks_);
    return blocks_ - used;
  }
  static int64_t BlocksFor(int64_t tokens) { return (tokens + kBlock - 1) / kBlock; }

  std::map<SequenceHandle, int64_t> known, computed, kept, reserved;
  std::map<SequenceHandle, std::array<int64_t, 2>> stops;
  std::vector<SequenceHandle> preempted;
  bool saves_states = false;

 private:
  int64_t blocks_;
};

// The engine's part: sequences that want so many tokens.
class Simulation {
 public:
  Simulation(const SchedulerOptions& options, int64_t blocks)
      : options_(options), memory(blocks), scheduler(options, memory) {}

  SequenceHandle Add(int64_t prompt, int64_t answer, int priority = 0, double now = 0) {
    const SequenceHandle s = scheduler.Add(prompt, priority, now);
    memory.known[s] = prompt;
    memory.computed[s] = memory.kept[s] = 0;
    memory.stops[s] = {};
    wanted_[s] = prompt + answer;
    return s;
  }
  void Remove(SequenceHandle s) {
    scheduler.Remove(s);
    memory.reserved.erase(s);
    wanted_.erase(s);
  }
  // One step; returns who finished.
  std::vector<SequenceHandle> Step() {
    memory.preempted.clear();
    const std::set<SequenceHandle> before(live_running());
    plan = scheduler.Plan();
    int64_t rows = 0;
    bool decodes = false;
    std::set<SequenceHandle> seen;
    for (const ScheduledRows& r : plan) {
      EXPECT_TRUE(seen.insert(r.sequence).second);
      EXPECT_GE(r.rows, 1);
      EXPECT_TRUE(memory.reserved.count(r.sequence));
      EXPECT_LE(memory.computed[r.sequence] + r.rows, memory.known[r.sequence]);
      EXPECT_EQ(r.is_last, memory.computed[r.sequence] + r.rows == memory.known[r.sequence]);
      rows += r.rows;
      decodes |= r.is_decode;
    }
    EXPECT_LE(rows, options_.step_rows_max);
    EXPECT_LE(scheduler.running(), options_.max_sequences);
    EXPECT_TRUE(wanted_.empty() || !plan.empty()) << "no progress";
    // What ran and could decode did, unless it was preempted.
    for (SequenceHandle s : before) {
      if (memory.known[s] - memory.computed[s] != 1 || !memory.reserved.count(s)) continue;
      EXPECT_TRUE(seen.count(s)) << "sequence " << s << " was left out";
    }
    std::vector<SequenceHandle> finished;
    for (const ScheduledRows& r : plan) {
      const SequenceHandle s = r.sequence;
      memory.computed[s] += r.rows;
      if (r.is_last) ++memory.known[s];
      if (memory.known[s] >= wanted_[s]) {
        finished.push_back(s);
      } else {
        scheduler.Update(s, memory.computed[s], memory.known[s]);
      }
    }
    for (SequenceHandle s : finished) Remove(s);
    return finished;
  }
  bool empty() const { return wanted_.empty(); }
  std::set<SequenceHandle> live_running() const {
    std::set<SequenceHandle> all;
    for (const auto& [s, tokens] : memory.reserved) all.insert(s);
    return all;
  }

 private:
  const SchedulerOptions options_;
  std::map<SequenceHandle, int64_t> wanted_;  // tokens at the end

 public:
  TestMemory memory;
  Scheduler scheduler;
  std::span<const ScheduledRows> plan;
};

TEST(Scheduler, DecodesFirstAndPrefillsInChunksOfWhatIsLeft) {
  Simulation sim({.max_sequences = 4, .step_rows_max = 16, .mixed_prefill_rows_max = 8}, 1000);
  const SequenceHandle a = sim.Add(10, 50);
  sim.Step();
  ASSERT_EQ(sim.plan.size(), 1u);
  EXPECT_EQ(sim.plan[0].rows, 10);
  EXPECT_TRUE(sim.plan[0].is_last);
  const SequenceHandle b = sim.Add(30, 5);
  sim.Step();
  ASSERT_EQ(sim.plan.size(), 2u);
  EXPECT_EQ(sim.plan[0].sequence, a);
  EXPECT_EQ(sim.plan[0].rows, 1);
  EXPECT_TRUE(sim.plan[0].is_decode);
  EXPECT_EQ(sim.plan[1].sequence, b);
  EXPECT_EQ(sim.plan[1].rows, 8);
  EXPECT_FALSE(sim.plan[1].is_last);
}

TEST(Scheduler, ChunksEndWhereAStateIsKept) {
  Simulation sim({.max_sequences = 1, .step_rows_max = 64}, 1000);
  const SequenceHandle a = sim.Add(100, 2);
  sim.memory.stops[a] = {20, 90};
  std::vector<int> rows;
  while (!sim.empty()) {
    sim.Step();
    rows.push_back(sim.plan[0].rows);
  }
  EXPECT_EQ(rows, (std::vector<int>{20, 64, 6, 10, 1}));
}

TEST(Scheduler, RoomForDraftsIsLeftBesidePrefill) {
  Simulation sim({.max_sequences = 4, .step_rows_max = 16, .mixed_prefill_rows_max = 64, .draft_rows_max = 3},
                 1000);
  sim.Add(4, 50);
  sim.Step();
  sim.Add(100, 5);
  sim.Step();
  ASSERT_EQ(sim.plan.size(), 2u);
  EXPECT_EQ(sim.plan[1].rows, 16 - 1 - 3);
}

TEST(Scheduler, ShortPromptsOvertakeAndPrioritiesGoBefore) {
  Simulation sim({.max_sequences = 1, .step_rows_max = 4, .priority_seconds = 10, .token_seconds = 0.1},
                 1000);
  sim.Add(4, 3, 0, 0);
  sim.Step();
  const SequenceHandle long_one = sim.Add(50, 1, 0, 0);
  const SequenceHandle short_one = sim.Add(4, 1, 0, 1);
  const SequenceHandle urgent = sim.Add(50, 1, -1, 2);
  const SequenceHandle late = sim.Add(4, 1, 0, 20);
  std::vector<SequenceHandle> order;
  while (!sim.empty()) {
    for (SequenceHandle s : sim.Step()) order.push_back(s);
  }
  EXPECT_EQ(std::vector<SequenceHandle>(order.begin() + 1, order.end()),
            (std::vector<SequenceHandle>{urgent, short_one, long_one, late}));
}

TEST(Scheduler, PreemptsTheLastInOrderAndBringsItBack) {
  // Two sequences that fit at first and not when they have grown.
  Simulation sim({.max_sequences = 4, .step_rows_max = 16}, 8);
  const SequenceHandle first = sim.Add(8, 16);
  const SequenceHandle second = sim.Add(8, 16);
  std::vector<SequenceHandle> finished;
  int preemptions = 0;
  while (!sim.empty()) {
    for (SequenceHandle s : sim.Step()) finished.push_back(s);
    for (SequenceHandle s : sim.memory.preempted) EXPECT_EQ(s, second);
    preemptions += static_cast<int>(sim.memory.preempted.size());
  }
  EXPECT_EQ(finished, (std::vector<SequenceHandle>{first, second}));
  EXPECT_GE(preemptions, 1);
  EXPECT_EQ(sim.scheduler.preemptions(), preemptions);
}

TEST(Scheduler, AdmissionDoesNotPreempt) {
  Simulation sim({.max_sequences = 4, .step_rows_max = 64}, 10);
  sim.Add(20, 10);
  sim.Step();
  sim.Add(30, 2, -50);  // before it in order, and doesn't fit beside it
  for (int i = 0; i < 5; ++i) {
    sim.Step();
    EXPECT_TRUE(sim.memory.preempted.empty());
    EXPECT_EQ(sim.scheduler.running(), 1);
  }
}

TEST(Scheduler, AStreamOfShortUrgentRequestsStarvesNobody) {
  const SchedulerOptions options{
      .max_sequences = 2, .step_rows_max = 8, .priority_seconds = 5, .token_seconds = 0.01};
  Simulation sim(options, 12);
  const SequenceHandle patient = sim.Add(30, 4, /*priority=*/3, /*now=*/0);
  double now = 0;
  int steps = 0;
  for (bool finished = false; !finished; ++steps) {
    now += 0.1;
    while (sim.scheduler.waiting() < 4) sim.Add(3, 3, 0, now);
    for (SequenceHandle s : sim.Step()) finished |= s == patient;
    // Due 15.3 seconds after its arrival; who comes later than that is behind it.
    ASSERT_LT(now, 15.3 + 5) << "starved";
  }
  EXPECT_GT(steps, 0);
}

// Random arrivals, lengths, priorities, ends and prefix hits under tight memory; Simulation checks every
// step.
TEST(Scheduler, RandomLoadsEndAndKeepTheInvariants) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    std::mt19937_64 rng(seed);
    auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
    const int max_sequences = 1 + static_cast<int>(below(8));
    const SchedulerOptions options{.max_sequences = max_sequences,
                                   .step_rows_max = max_sequences + static_cast<int>(below(20)),
                                   .mixed_prefill_rows_max = 1 + static_cast<int>(below(12)),
                                   .draft_rows_max = static_cast<int>(below(4))};
    const int64_t blocks = 16 + below(30);
    const int64_t tokens_max = (blocks - 1) * kBlock - 1;
    Simulation sim(options, blocks);
    sim.memory.saves_states = seed % 2 == 0;
    std::vector<SequenceHandle> live;
    int added = 0, ended = 0;
    for (int step = 0; added < 150 || !sim.empty(); ++step) {
      ASSERT_LT(step, 100000) << "seed " << seed;
      while (added < 150 && below(3) == 0) {
        const int64_t prompt = 1 + below(tokens_max - 1);
        const SequenceHandle s =
            sim.Add(prompt, 1 + below(tokens_max - prompt), static_cast<int>(below(5)), step * 0.05);
        if (below(3) == 0 && prompt > kBlock)
          sim.memory.kept[s] = below(prompt / kBlock) * kBlock;  // a prefix
        sim.memory.computed[s] = sim.memory.kept[s];
        live.push_back(s);
        ++added;
      }
      if (!live.empty() && below(20) == 0) {  // cancelled
        const auto it = live.begin() + below(std::ssize(live));
        sim.Remove(*it);
        live.erase(it);
        ++ended;
      }
      for (SequenceHandle s : sim.Step()) {
        live.erase(std::find(live.begin(), live.end(), s));
        ++ended;
      }
      if (HasFailure()) FAIL() << "seed " << seed << ", step " << step;
    }
    EXPECT_EQ(ended, 150);
    EXPECT_EQ(sim.scheduler.waiting() + sim.scheduler.running(), 0);
    EXPECT_TRUE(sim.memory.reserved.empty());
  }
}

}  // namespace
}  // namespace foresight
