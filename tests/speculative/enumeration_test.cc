// The proof that nothing but speed changes, by enumeration (dspark.md 3.7, 5.2, 5.7, 12): all outcomes of the
// code that serves requests, on toy distributions, against plain decoding. What is exact must agree to 1e-12;
// what is known to be wrong must show.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "speculative/throughput_planners.h"
#include "tests/speculative/enumerated_chance.h"
#include "tests/speculative/toy_engine.h"

namespace foresight {
namespace {

constexpr double kExact = 1e-12;

using Law = std::map<std::vector<Tokens>, double>;  // of what all requests generate

using MakePlanning = std::function<StepPlanning()>;

template <typename ChanceType = EnumeratedChance>
Law LawOf(const ToyModel& model, const ToyRequests& requests, const MakePlanning& make, const Cut& cut = {}) {
  Law law;
  ChanceType chance;
  chance.ForAll([&] {
    StepPlanning planning = make();
    const std::vector<Tokens> texts = Generate(model, requests, chance, planning, cut);
    law[texts] += chance.probability();
  });
  return law;
}

// Plain decoding: each request alone, one token after the other.
Law PlainLaw(const ToyModel& model, const ToyRequests& requests) {
  Law law;
  EnumeratedChance chance;
  chance.ForAll([&] {
    std::vector<Tokens> texts(requests.num);
    for (int r = 0; r < requests.num; ++r) {
      SamplingParams params = requests.params;
      params.seed = r;
      Sampler sampler(params, model.vocab_size);
      while (std::ssize(texts[r]) < requests.tokens) {
        const int64_t position = std::ssize(texts[r]);
        const Logits logits = model.target(r, texts[r]);
        const TokenId token =
            chance.Draw(sampler.Key(position, RandomStream::kCoupled, 0), sampler.Process(logits).value());
        texts[r].push_back(token);
        sampler.AddGenerated(token);
      }
    }
    law[texts] += chance.probability();
  });
  return law;
}

double TotalVariation(const Law& a, const Law& b) {
  double sum = 0;
  for (const auto& [texts, probability] : a) {
    const auto other = b.find(texts);
    sum += std::abs(probability - (other == b.end() ? 0 : other->second));
  }
  for (const auto& [texts, probability] : b) sum += a.count(texts) == 0 ? probability : 0;
  return sum / 2;
}

// Of the token at a place of request 0's text, given what `condition` says of the texts before.
std::vector<double> TokenLaw(const Law& law, size_t place, int vocab_size,
                             const std::function<bool(const Tokens&)>& condition = {}) {
  std::vector<double> probabilities(vocab_size);
  double all = 0;
  for (const auto& [texts, probability] : law) {
    if (condition && !condition(texts[0])) continue;
    probabilities[texts[0][place]] += probability;
    all += probability;
  }
  for (double& p : probabilities) p /= all;
  return probabilities;
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance) << "token " << i;
}

// log of a float is off by 6e-8: laws given in decimals hold to this.
constexpr double kDecimals = 1e-6;

const std::vector<double> kJagged = {12, 10, 7, 6.9, 6.8, 6.7};  // steps per second of 1..6 rows
const std::vector<double> kSmooth = {12, 10, 8.9, 7.9, 7.0, 6.2};
const std::vector<double> kCliff = {10, 6, 5.9, 5.8, 3, 2.9};

PlannerOptions Parsed(std::string_view text) {
  return ParsePlanner(text).value();
}

TEST(Enumeration, PlainDecodingHasTheLawOfTheTables) {
  const ToyModel model = RandomModel(1);
  double sum = 0;
  for (const auto& [texts, probability] : PlainLaw(model, {})) {
    double want = 1;
    for (int r = 0; r < 2; ++r) {
      for (size_t i = 0; i < texts[r].size(); ++i) {
        const Logits logits = model.target(r, Tokens(texts[r].begin(), texts[r].begin() + i));
        want /= 1 + std::exp(double{logits[1 - texts[r][i]]} - double{logits[texts[r][i]]});
      }
    }
    EXPECT_NEAR(probability, want, kExact);
    sum += probability;
  }
  EXPECT_NEAR(sum, 1, kExact);
}

struct Case {
  std::string planner;
  AcceptanceRule rule;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.planner << ", " << AcceptanceRuleName(c.rule);
}

class EveryPlanner : public testing::TestWithParam<Case> {};

// R = 2, gamma = 2, V = 2. T2.
TEST_P(EveryPlanner, LeavesTheJointLawAsItIs) {
  ToyRequests requests;
  requests.rule = GetParam().rule;
  for (const std::vector<double>& costs : {kJagged, kSmooth, kCliff}) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const ToyModel model = RandomModel(seed);
      const auto make = [&] { return PlanningOf(Parsed(GetParam().planner), requests, CostsOf(costs)); };
      EXPECT_LT(TotalVariation(LawOf(model, requests, make), PlainLaw(model, requests)), kExact) << seed;
    }
  }
}

// Penalties along the drafts, temperature, min-p that cuts one of the two tokens at times.
TEST_P(EveryPlanner, LeavesTheLawWithAllParametersAsItIs) {
  ToyRequests requests;
  requests.rule = GetParam().rule;
  requests.params.temperature = 0.7;
  requests.params.min_p = 0.2;
  requests.params.repetition_penalty = 1.3;
  requests.params.presence_penalty = 0.4;
  requests.params.frequency_penalty = -0.3;
  requests.params.logit_bias = {{1, 0.25}};
  for (uint64_t seed = 0; seed < 4; ++seed) {
    requests.draft = {.truncate = seed % 2 == 0, .penalties = seed < 2, .candidates_max = 2};
    const ToyModel model = RandomModel(100 + seed);
    const auto make = [&] { return PlanningOf(Parsed(GetParam().planner), requests, CostsOf(kCliff)); };
    EXPECT_LT(TotalVariation(LawOf(model, requests, make), PlainLaw(model, requests)), kExact) << seed;
  }
}

// One request through more steps, so that history counts.
TEST_P(EveryPlanner, LeavesLongerTextsAsTheyAre) {
  ToyRequests requests;
  requests.rule = GetParam().rule;
  requests.num = 1;
  requests.tokens = 5;
  for (uint64_t seed = 0; seed < 2; ++seed) {
    const ToyModel model = RandomModel(200 + seed);
    const auto make = [&] { return PlanningOf(Parsed(GetParam().planner), requests, CostsOf({10, 7, 6.9})); };
    EXPECT_LT(TotalVariation(LawOf(model, requests, make), PlainLaw(model, requests)), kExact) << seed;
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    for (const char* planner :
         {"auto", "static:0", "static:1", "static:2", "threshold:0.5", "sync", "lookahead", "async"}) {
      cases.push_back({planner, rule});
    }
  }
  cases.push_back({"global", AcceptanceRule::kCoupled});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Enumeration, EveryPlanner, testing::ValuesIn(Cases()), [](const auto& info) {
  std::string name = info.param.planner + "_" + std::string(AcceptanceRuleName(info.param.rule));
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

// A control: with the rejection rule the global planner and a budget from present confidences are biased.
TEST(EnumerationControl, PlansThatSeeTheirOwnDraftsAreBiased) {
  class BudgetOfPresentMeans final : public Planner {
   public:
    void Prepare(const StepLoad& load, const SpeculationHistory&, const StepCosts*,
                 std::span<int> depths) override {
      for (size_t r = 0; r < depths.size(); ++r) depths[r] = load.requests[r].drafts_max;
    }
    void Admit(Frontier& frontier) override {
      const RoundConfidences& round = frontier.Unrestricted();
      double sum = 0;
      for (int r = 0; r < round.num_requests(); ++r) {
        double survival = 1;
        for (float c : round.of(r)) sum += survival *= c;
      }
      AdmitMostLikely(frontier, static_cast<int>(std::lround(sum)), queue_);
    }

   private:
    FrontierQueue queue_{2};
  };
  ToyRequests requests;
  requests.claim_coupled = true;  // or Frontier would refuse
  double global = 0;
  double budget = 0;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const ToyModel model = RandomModel(seed);
    const Law plain = PlainLaw(model, requests);
    const auto make_global = [&] { return PlanningOf(Parsed("global"), requests, CostsOf(kJagged)); };
    global = std::max(global, TotalVariation(LawOf(model, requests, make_global), plain));
    const auto make_budget = [&] {
      return StepPlanning::Create(std::make_unique<BudgetOfPresentMeans>(),
                                  {.slots_max = 2, .drafts_max = 2, .rows_max = 64}, std::nullopt);
    };
    budget = std::max(budget, TotalVariation(LawOf(model, requests, make_budget), plain));
  }
  EXPECT_GT(global, 0.02);
  EXPECT_GT(budget, 0.02);
}

TEST(EnumerationDeathTest, TheGlobalPlannerIsRefusedWithRejection) {
  ToyRequests requests;
  EnumeratedChance chance;
  StepPlanning planning = PlanningOf(Parsed("global"), requests, CostsOf(kJagged));
  EXPECT_DEATH(Generate(RandomModel(0), requests, chance, planning), "coupled rule only");
}

// The counterexample of the paper's Appendix A with its numbers: T1.
class AppendixA : public testing::Test {
 protected:
  AppendixA() {
    requests_.num = 1;
    model_.target = [](int, const Tokens&) { return LogsOf({.7, .3}); };
    model_.draft = [](int, const Tokens&, int) { return LogsOf({.5, .5}); };
    model_.confidence = [](int, const Tokens& before, int k) {
      return k == 0 ? .8f : before.back() == 0 ? .9f : 0.f;
    };
  }
  StepPlanning Make(std::string_view planner) const {
    return PlanningOf(Parsed(planner), requests_, CostsOf({1.0, .5, .45}));
  }
  std::vector<double> FirstToken(const MakePlanning& make) {
    return TokenLaw(LawOf(model_, requests_, make), 0, 2);
  }

  ToyModel model_;
  ToyRequests requests_;
};

TEST_F(AppendixA, SyncVerifiesNothing) {
  ExpectNear(FirstToken([&] { return Make("sync"); }), {.7, .3}, kDecimals);
  for (TokenId x : {0, 1}) {
    StepPlanning planning = Make("sync");
    const std::vector<RequestLoad> load = {{.id = {}, .drafts_max = 2, .coupled = false}};
    planning.BeginStep({.requests = load, .context_tokens = 1});
    planning.SetConfidences(0, std::vector<float>{.8f, x == 0 ? .9f : 0.f});
    EXPECT_EQ(planning.Plan()[0], 0);
  }
}

TEST_F(AppendixA, GlobalSearchIsBiased) {
  requests_.claim_coupled = true;
  for (TokenId x : {0, 1}) {
    StepPlanning planning = Make("global");
    const std::vector<RequestLoad> load = {{.id = {}, .drafts_max = 2, .coupled = true}};
    planning.BeginStep({.requests = load, .context_tokens = 1});
    planning.SetConfidences(0, std::vector<float>{.8f, x == 0 ? .9f : 0.f});
    EXPECT_EQ(planning.Plan()[0], x == 0 ? 2 : 0);
  }
  ExpectNear(FirstToken([&] { return Make("global"); }), {.85, .15}, kDecimals);
}

TEST_F(AppendixA, GlobalSearchIsExactWithTheCoupledRule) {
  requests_.rule = AcceptanceRule::kCoupled;
  ExpectNear(FirstToken([&] { return Make("global"); }), {.7, .3}, kDecimals);
}

TEST_F(AppendixA, AnyCapacityFromHistoryIsExact) {
  class FixedCapacity final : public Planner {
   public:
    explicit FixedCapacity(int capacity) : capacity_(capacity) {}
    void Prepare(const StepLoad& load, const SpeculationHistory&, const StepCosts*,
                 std::span<int> depths) override {
      depths[0] = load.requests[0].drafts_max;
    }
    void Admit(Frontier& frontier) override { AdmitMostLikely(frontier, capacity_, queue_); }

   private:
    int capacity_;
    FrontierQueue queue_{1};
  };
  for (int capacity : {0, 1, 2}) {
    ExpectNear(FirstToken([&] {
                 return StepPlanning::Create(std::make_unique<FixedCapacity>(capacity),
                                             {.slots_max = 1, .drafts_max = 2, .rows_max = 64}, std::nullopt);
               }),
               {.7, .3}, kDecimals);
  }
  ExpectNear(FirstToken([&] { return Make("async"); }), {.7, .3}, kDecimals);
  ExpectNear(FirstToken([&] { return Make("lookahead"); }), {.7, .3}, kDecimals);
  ExpectNear(FirstToken([&] { return Make("auto"); }), {.7, .3}, kDecimals);
}

// Draft noise must know the round: T6. The next step verifies a draft iff the last round's second draft was
// token 0 (which its third confidence tells).
class PlanOfLastRound final : public Planner {
 public:
  void Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts*,
               std::span<int> depths) override {
    const RequestLoad& request = load.requests[0];
    depths[0] = request.drafts_max;
    capacity_ = first_ ? 1 : history.MeanConfidence(request.id, 2) > 0.8 ? 1 : 0;
    first_ = false;
  }
  void Admit(Frontier& frontier) override {
    for (int i = 0; i < capacity_ && !frontier.exhausted(0); ++i) frontier.Admit(0);
  }

 private:
  bool first_ = true;
  int capacity_ = 0;
};

template <typename ChanceType>
std::vector<double> SecondTokenAfterARejection() {
  ToyRequests requests;
  requests.num = 1;
  requests.tokens = 4;
  requests.drafts_max = 3;
  ToyModel model;
  model.target = [](int, const Tokens& before) {
    return before.empty() ? LogsOf({.6, .4}) : before.size() == 1 ? LogsOf({.7, .3}) : LogsOf({.5, .5});
  };
  model.draft = [](int, const Tokens& before, int) {
    return before.empty() ? LogsOf({.9, .1}) : LogsOf({.5, .5});
  };
  model.confidence = [](int, const Tokens& before, int k) {
    return k < 2 ? .5f : before[1] == 0 ? 1.f : 0.f;
  };
  // A first draft of token 0 after which the text begins with 1 has been rejected.
  double weights[2] = {};
  ChanceType chance;
  chance.ForAll([&] {
    StepPlanning planning = StepPlanning::Create(
        std::make_unique<PlanOfLastRound>(), {.slots_max = 1, .drafts_max = 3, .rows_max = 64}, std::nullopt);
    TokenId first_draft = -1;
    const Cut watch = [&](const DraftBlock& block, int planned) {
      if (first_draft < 0) first_draft = block.tokens()[0];
      return planned;
    };
    const Tokens text = Generate(model, requests, chance, planning, watch)[0];
    if (first_draft == 0 && text[0] == 1) weights[text[1]] += chance.probability();
  });
  return {weights[0] / (weights[0] + weights[1]), weights[1] / (weights[0] + weights[1])};
}

TEST(Enumeration, DraftNoiseKnowsTheRound) {
  ExpectNear(SecondTokenAfterARejection<EnumeratedChance>(), {.7, .3}, kDecimals);
}

TEST(EnumerationControl, DraftNoiseThatRepeatsIsBiased) {
  ExpectNear(SecondTokenAfterARejection<RoundBlindChance>(), {.85, .15}, kDecimals);
}

// The same behind the planners that serve. The third token is a coin, p = (.7, .3), q = (.5, .5); all else is
// certain, and the first draft always wrong, so that the first step brings one token. Its last confidence,
// all or nothing, tells the coin it drafted; the costs are such that the step which comes to the coin again
// verifies it or doesn't by what history says of that confidence.
std::vector<double> ThirdToken(const std::string& planner, double last_row_ms, int tokens, bool blind) {
  ToyRequests requests;
  requests.num = 1;
  requests.tokens = tokens;
  requests.drafts_max = 4;
  ToyModel model;
  model.target = [](int, const Tokens& before) {
    return before.size() == 2 ? LogsOf({.7, .3}) : LogsOf({1, 0});
  };
  model.draft = [](int, const Tokens& before, int) {
    return before.size() == 2 ? LogsOf({.5, .5}) : before.empty() ? LogsOf({0, 1}) : LogsOf({1, 0});
  };
  model.confidence = [](int, const Tokens& before, int k) {
    return before.size() == 3 && k == 3 && before[2] == 1 ? 0.f : 1.f;
  };
  // Nothing pays but all four drafts.
  std::vector<double> steps_per_second = {1000};
  for (double below : {.03, .02, .01, 0.}) steps_per_second.push_back(1000 / (last_row_ms - below));
  const auto make = [&] { return PlanningOf(Parsed(planner), requests, CostsOf(steps_per_second)); };
  return TokenLaw(blind ? LawOf<RoundBlindChance>(model, requests, make) : LawOf(model, requests, make), 2,
                  2);
}

TEST(Enumeration, PlansFromHistoryAreExactAndWouldShowNoiseThatRepeats) {
  struct Example {
    std::string planner;
    double last_row_ms;
    int tokens;
  };
  for (const Example& e :
       {Example{"async", 4.43, 7}, Example{"lookahead", 3.985, 6}, Example{"auto", 3.985, 7}}) {
    SCOPED_TRACE(e.planner);
    ExpectNear(ThirdToken(e.planner, e.last_row_ms, e.tokens, /*blind=*/false), {.7, .3}, kDecimals);
    ExpectNear(ThirdToken(e.planner, e.last_row_ms, e.tokens, /*blind=*/true), {.85, .15}, kDecimals);
  }
}

// One request, one draft: the ways to shorten a draft.
struct OneDraft {
  ToyModel model;
  ToyRequests requests;

  OneDraft(const std::vector<double>& p, const std::vector<double>& q) {
    requests.num = 1;
    requests.tokens = 2;
    requests.drafts_max = 1;
    model.vocab_size = static_cast<int>(p.size());
    model.target = [=](int, const Tokens&) { return LogsOf(p); };
    model.draft = [=](int, const Tokens&, int) { return LogsOf(q); };
    model.confidence = [](int, const Tokens&, int) { return 1.f; };
  }
  std::vector<double> Law(const Cut& cut = {}) const {
    const auto make = [&] { return PlanningOf(Parsed("static:1"), requests, CostsOf({2, 1})); };
    return TokenLaw(LawOf(model, requests, make, cut), 0, model.vocab_size);
  }
};

TEST(EnumerationControl, CuttingUnlikelyDraftsIsBiased) {  // T3
  const OneDraft one({.7, .3}, {.6, .4});
  ExpectNear(one.Law(), {.7, .3}, kDecimals);
  const Cut cut = [](const DraftBlock& block, int planned) {
    return planned == 1 && block.q(0).Probability(block.tokens()[0]) < .5 ? 0 : planned;
  };
  ExpectNear(one.Law(cut), {.88, .12}, kDecimals);
}

TEST(EnumerationControl, CuttingForbiddenDraftsIsBiasedRejectingThemIsNot) {  // T4
  const OneDraft one({.7, .3, 0}, {.3, .3, .4});
  ExpectNear(one.Law(), {.7, .3, 0}, kDecimals);
  const Cut cut = [](const DraftBlock& block, int planned) {
    return planned == 1 && block.tokens()[0] == 2 ? 0 : planned;
  };
  ExpectNear(one.Law(cut), {.58, .42, 0}, kDecimals);
}

// Drafts that are chosen, not drawn: cutting them by what they are is exact, whatever the reason.
TEST(Enumeration, ChosenDraftsMayBeCut) {
  const ToyModel model = RandomModel(7, 3);
  for (TokenId draft : {0, 1, 2}) {
    std::vector<double> law(3);
    EnumeratedChance chance;
    chance.ForAll([&] {
      SamplingParams params;
      params.seed = 1;
      Sampler sampler(params, 3);
      DraftBlock block(params, AcceptanceRule::kRejection, 3, 1);
      Speculator speculator(3, 1, chance);
      block.Begin(0);
      block.AppendPoint(draft);
      const int verified = draft == 1 ? 0 : 1;
      Logits rows = model.target(0, {});
      if (verified == 1) {
        const Logits second = model.target(0, {draft});
        rows.insert(rows.end(), second.begin(), second.end());
      }
      const TokenId token = speculator.Verify(rows, verified, sampler, block)->tokens[0].token;
      law[token] += chance.probability();
    });
    Sampler sampler(SamplingParams(), 3);
    const Logits logits = model.target(0, {});
    const Distribution plain = sampler.Process(logits).value();
    for (TokenId v : {0, 1, 2}) EXPECT_NEAR(law[v], plain.Probability(v), kExact);
  }
}

// A control of the rule itself: a q that is not what the draft was drawn from.
TEST(EnumerationControl, AWrongQIsBiased) {
  std::vector<double> law(2);
  EnumeratedChance chance;
  chance.ForAll([&] {
    SamplingParams params;
    params.seed = 1;
    Sampler sampler(params, 2);
    DraftBlock block(params, AcceptanceRule::kRejection, 2, 1);
    Speculator speculator(2, 1, chance);
    block.Begin(0);
    const TokenId token =
        chance.Draw(sampler.Key(0, RandomStream::kDraft, 1), sampler.Process(LogsOf({.5, .5})).value());
    block.AppendDrawn(token, sampler.Process(LogsOf({.9, .1})).value());
    Logits rows = LogsOf({.7, .3});
    rows.insert(rows.end(), {0, 0});
    const TokenId emitted = speculator.Verify(rows, 1, sampler, block)->tokens[0].token;
    law[emitted] += chance.probability();
  });
  EXPECT_GT(std::abs(law[0] - .7), 0.1);
}

}  // namespace
}  // namespace foresight
