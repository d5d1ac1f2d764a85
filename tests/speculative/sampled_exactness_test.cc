// Exactness of the random draws that requests are served with (dspark.md 3.7, 12): chi-square tests of
// sampled texts against plain decoding's law, match probabilities of the coupled rule, and texts that are the
// same token by token. Seeds are fixed: the same numbers in every run.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/speculative/toy_engine.h"

namespace foresight {
namespace {

constexpr int kVocab = 24;

// Logits of a sequence by its last token, its length and what the slot adds; kept once they are made.
class Table {
 public:
  Table(uint64_t seed, int vocab_size) : seed_(seed), vocab_size_(vocab_size) {}
  const Logits& Of(const Tokens& before, int k) {
    const uint64_t key = (before.size() * 64 + k) * 64 + (before.empty() ? 63 : before.back());
    Logits& logits = rows_[key];
    if (logits.empty()) {
      std::mt19937_64 random(MixBits(MixBits(seed_) + key));
      std::normal_distribution<float> normal(0, 1.5);
      for (int v = 0; v < vocab_size_; ++v) logits.push_back(normal(random));
    }
    return logits;
  }

 private:
  uint64_t seed_;
  int vocab_size_;
  std::map<uint64_t, Logits> rows_;
};

// A draft that resembles its target.
ToyModel TableModel(uint64_t seed) {
  const auto target = std::make_shared<Table>(3 * seed, kVocab);
  const auto noise = std::make_shared<Table>(3 * seed + 1, kVocab);
  const auto confidence = std::make_shared<Table>(3 * seed + 2, 1);
  return {.vocab_size = kVocab,
          .target = [=](int, const Tokens& before) { return target->Of(before, 0); },
          .draft =
              [=](int, const Tokens& before, int k) {
                Logits logits = target->Of(before, 0);
                const Logits& added = noise->Of(before, k);
                for (int v = 0; v < kVocab; ++v) logits[v] += 0.5f * added[v];
                return logits;
              },
          .confidence = [=](int, const Tokens& before,
                            int k) { return 1 / (1 + std::exp(-confidence->Of(before, k)[0])); }};
}

// The probability of a larger chi-square value (Wilson and Hilferty's approximation).
double ChiSquareTail(double value, double degrees) {
  const double z = (std::cbrt(value / degrees) - (1 - 2 / (9 * degrees))) / std::sqrt(2 / (9 * degrees));
  return std::erfc(z / std::sqrt(2)) / 2;
}

struct ChiSquare {
  double value = 0;
  int cells = 0;
  double tail() const { return ChiSquareTail(value, cells - 1); }
};

// Cells of less than 5 expected are one cell.
ChiSquare Compare(const std::map<Tokens, double>& law, const std::map<Tokens, int64_t>& counts, int64_t num) {
  ChiSquare result;
  double rest_expected = 0;
  double rest_counted = static_cast<double>(num);
  for (const auto& [text, probability] : law) {
    const double expected = probability * static_cast<double>(num);
    if (expected < 5) {
      rest_expected += expected;
      continue;
    }
    const auto count = counts.find(text);
    const double counted = count == counts.end() ? 0 : static_cast<double>(count->second);
    result.value += (counted - expected) * (counted - expected) / expected;
    rest_counted -= counted;
    ++result.cells;
  }
  if (rest_expected > 1) {
    result.value += (rest_counted - rest_expected) * (rest_counted - rest_expected) / rest_expected;
    ++result.cells;
  } else {
    EXPECT_LE(rest_counted, 20 + 20 * rest_expected);  // what can't happen doesn't
  }
  return result;
}

// The law of the first two tokens in plain decoding.
std::map<Tokens, double> PairLaw(const ToyModel& model, const SamplingParams& params) {
  std::map<Tokens, double> law;
  Sampler sampler(params, kVocab);
  const Logits first_logits = model.target(0, {});
  for (TokenId a = 0; a < kVocab; ++a) {
    const double first = sampler.Process(first_logits)->Probability(a);
    if (first == 0) continue;
    sampler.AddGenerated(a);
    const Logits logits = model.target(0, {a});
    for (TokenId b = 0; b < kVocab; ++b) {
      const double second = sampler.Process(logits)->Probability(b);
      if (second > 0) law[{a, b}] = first * second;
    }
    sampler.RemoveGenerated(a);
  }
  return law;
}

// Chi-square of `num` generated pairs of tokens under a planner.
ChiSquare TestPairs(const ToyModel& model, ToyRequests requests, const std::string& planner, int num,
                    const Cut& cut = {}) {
  requests.num = 1;
  requests.tokens = 4;
  requests.drafts_max = 3;
  KeyedChance chance;
  const StepCosts costs = CostsOf({10, 7, 6.5, 6.4});
  std::map<Tokens, int64_t> counts;
  for (int i = 0; i < num; ++i) {
    requests.params.seed = i;
    StepPlanning planning = PlanningOf(ParsePlanner(planner).value(), requests, costs);
    const Tokens text = Generate(model, requests, chance, planning, cut)[0];
    ++counts[{text[0], text[1]}];
  }
  return Compare(PairLaw(model, requests.params), counts, num);
}

std::vector<SamplingParams> ManyParams() {
  std::vector<SamplingParams> all(6);
  all[1].top_p = 0.8;
  all[2].top_k = 6;
  all[2].temperature = 1.3;
  all[3].min_p = 0.1;
  all[3].temperature = 0.7;
  all[4].repetition_penalty = 1.4;
  all[4].presence_penalty = 0.7;
  all[4].frequency_penalty = 0.5;
  all[4].logit_bias = {{3, 2.0}, {5, -100}};
  all[5].top_p = 0.9;
  all[5].top_k = 12;
  all[5].min_p = 0.02;
  all[5].temperature = 0.8;
  all[5].repetition_penalty = 0.8;
  all[5].frequency_penalty = -0.4;
  return all;
}

TEST(SampledExactness, RejectionLeavesTheLawAsItIs) {  // T13
  int variant = 0;
  for (const SamplingParams& params : ManyParams()) {
    for (const char* planner : {"static:3", "lookahead", "async"}) {
      ToyRequests requests{.params = params};
      requests.draft = {
          .truncate = variant % 2 == 0, .penalties = variant % 3 != 0, .candidates_max = 8 + variant};
      const ChiSquare result = TestPairs(TableModel(variant), requests, planner, 20'000);
      EXPECT_GT(result.tail(), 1e-3) << "variant " << variant << ", chi-square " << result.value << " of "
                                     << result.cells << " cells";
      ++variant;
    }
  }
}

TEST(SampledExactness, CoupledLeavesTheLawAsItIs) {
  int variant = 100;
  for (const SamplingParams& params : ManyParams()) {
    const ToyRequests requests{.params = params, .rule = AcceptanceRule::kCoupled};
    EXPECT_GT(TestPairs(TableModel(variant), requests, "global", 20'000).tail(), 1e-3) << variant;
    ++variant;
  }
}

TEST(SampledExactnessControl, ABiasedCutShows) {
  const Cut cut = [](const DraftBlock& block, int planned) {
    for (int k = 0; k < planned; ++k) {
      if (block.q(k).Probability(block.tokens()[k]) < 0.3) return k;
    }
    return planned;
  };
  EXPECT_LT(TestPairs(TableModel(0), {}, "static:3", 20'000, cut).tail(), 1e-6);
}

// Shares of drafts that are accepted: T5 for the coupled rule, 1 - TV(p, q) for rejection.
double AcceptedShare(const std::vector<double>& p, const std::vector<double>& q, AcceptanceRule rule) {
  constexpr int kRounds = 400'000;  // three standard deviations are 0.0024 or less
  KeyedChance chance;
  const int vocab = static_cast<int>(p.size());
  Speculator speculator(vocab, 1, chance);
  SamplingParams params;
  params.seed = 5;
  Sampler sampler(params, vocab);
  DraftBlock block(params, rule, vocab, 1);
  const Logits draft = LogsOf(q);
  Logits rows = LogsOf(p);
  rows.resize(2 * vocab, 0);
  int accepted = 0;
  for (int i = 0; i < kRounds; ++i) {
    block.Begin(i);
    EXPECT_TRUE(speculator.Draft(draft, sampler, block).ok());
    accepted += speculator.Verify(rows, 1, sampler, block)->accepted;
  }
  return static_cast<double>(accepted) / kRounds;
}

TEST(SampledExactness, AcceptanceIsWhatTheRulesPromise) {
  struct Example {
    std::vector<double> p, q;
    double coupled, rejection;
  };
  for (const Example& e :
       {Example{{.7, .3}, {.5, .5}, .800, .800}, Example{{.5, .3, .2}, {.2, .3, .5}, .631, .700},
        Example{{.6, .2, .1, .1}, {.4, .4, .1, .1}, .767, .800}}) {
    EXPECT_NEAR(AcceptedShare(e.p, e.q, AcceptanceRule::kCoupled), e.coupled, .003);
    EXPECT_NEAR(AcceptedShare(e.p, e.q, AcceptanceRule::kRejection), e.rejection, .003);
  }
}

// The text of a seed, and its log-probabilities, are those without speculation.
TEST(SampledExactness, CoupledTextsAreTheSameTokenByToken) {
  constexpr int kTokens = 40;
  std::vector<SamplingParams> all = ManyParams();
  all.emplace_back();
  all.back().temperature = 0;
  all.emplace_back();
  all.back().temperature = 0;
  all.back().repetition_penalty = 1.5;
  KeyedChance chance;
  const StepCosts costs = CostsOf({10, 9, 8.9, 8.8, 6, 5.9});
  int64_t steps = 0;
  int64_t texts = 0;
  for (size_t variant = 0; variant < all.size(); ++variant) {
    for (int seed = 0; seed < 4; ++seed) {
      const ToyModel model = TableModel(500 + seed);
      ToyRequests requests{
          .num = 3, .tokens = kTokens, .params = all[variant], .rule = AcceptanceRule::kCoupled};
      requests.drafts_max = 4;
      requests.params.seed = seed;
      std::vector<Tokens> plain(requests.num);
      for (int r = 0; r < requests.num; ++r) {
        SamplingParams params = requests.params;
        params.seed = seed * requests.num + r;
        Sampler sampler(params, kVocab);
        for (int i = 0; i < kTokens; ++i) {
          plain[r].push_back(sampler.Sample(model.target(r, plain[r]), i)->token);
          sampler.AddGenerated(plain[r].back());
        }
      }
      for (const char* planner :
           {"static:0", "static:4", "threshold:0.4", "sync", "lookahead", "async", "auto", "global"}) {
        StepPlanning planning = PlanningOf(ParsePlanner(planner).value(), requests, costs);
        const Cut count = [&](const DraftBlock&, int planned) {
          ++steps;
          return planned;
        };
        EXPECT_EQ(Generate(model, requests, chance, planning, count), plain) << planner << ", " << variant;
        texts += requests.num;
      }
    }
  }
  EXPECT_LT(steps, texts * kTokens * 3 / 4);  // drafts were accepted
}

}  // namespace
}  // namespace foresight
