#include <algorithm>
#include <cmath>
#include <vector>

#include "base/rng.h"
#include "kernels/sampling/sampling.h"

namespace foresight {
namespace {

// A row as a distribution.
class Weights {
 public:
  Weights(const float* logits, const SampleRow& row, int vocab_size)
      : logits_(logits), row_(row), vocab_size_(vocab_size) {
    bool good = true;
    for (int v = 0; v < vocab_size; ++v) {
      good &= logits[v] < INFINITY;
      statistics_.largest = v == 0 ? logits[v] : std::max(statistics_.largest, logits[v]);
    }
    can_draw_ = good && statistics_.largest > -INFINITY;
  }

  bool can_draw() const { return can_draw_; }
  RowStatistics statistics() const { return statistics_; }
  // By top_k and top_p of the row.
  void Cut() {
    std::vector<int32_t> order;
    for (int32_t v = 0; v < vocab_size_; ++v) {
      if (IsIn(v)) order.push_back(v);
    }
    std::sort(order.begin(), order.end(), [this](int32_t a, int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    });
    const bool by_count = row_.top_k > 0 && row_.top_k < std::ssize(order);
    if (by_count) order.resize(row_.top_k);
    if (row_.top_p < 1) {
      double all = 0;
      for (int32_t v : order) all += std::exp(LogWeight(v));
      double sum = 0;
      size_t kept = 0;
      while (kept < order.size() && (kept == 0 || sum < row_.top_p * all)) {
        sum += std::exp(LogWeight(order[kept++]));
      }
      order.resize(kept);
    }
    if (by_count || row_.top_p < 1) {
      statistics_.cut = {.logit = logits_[order.back()], .token = order.back()};
    }
  }
  void Normalize() {
    double sum = 0;
    for (int v = 0; v < vocab_size_; ++v) sum += IsIn(v) ? std::exp(LogWeight(v)) : 0;
    statistics_.log_normalizer = std::log(sum);
  }
  void SetStatistics(const RowStatistics& statistics) { statistics_ = statistics; }

  double LogWeight(int token) const {
    return (double{logits_[token]} - double{statistics_.largest}) * row_.inverse_temperature;
  }
  bool IsIn(int token) const {
    const RowCut& cut = statistics_.cut;
    return LogWeight(token) >= row_.lowest_log_weight &&
           (logits_[token] > cut.logit || (logits_[token] == cut.logit && token <= cut.token));
  }
  double Probability(int token) const {
    return IsIn(token) ? std::exp(LogWeight(token) - statistics_.log_normalizer) : 0;
  }

 private:
  const float* logits_;
  const SampleRow& row_;
  int vocab_size_;
  bool can_draw_ = false;
  RowStatistics statistics_;
};

// argmax of log_weight(token) + noise over tokens of finite weight; -1 when there is none.
template <typename LogWeight>
int32_t Draw(const SampleRow& row, int vocab_size, LogWeight&& log_weight) {
  const RandomSequence noise = RandomSequence::FromState(row.noise);
  int32_t winner = -1;
  double best = -INFINITY;
  for (int32_t v = 0; v < vocab_size; ++v) {
    const double w = log_weight(v);
    if (w == -INFINITY) continue;
    const double t = (static_cast<double>(noise.Bits53(v)) + 0.5) * 0x1p-53;
    const double sum = w - std::log(-std::log1p(-t));
    if (sum > best) {
      best = sum;
      winner = v;
    }
  }
  return winner;
}

int32_t DrawFrom(const Weights& p, const SampleRow& row, int vocab_size) {
  if (row.inverse_temperature == 0) {
    return static_cast<int32_t>(std::max_element(row.logits, row.logits + vocab_size) - row.logits);
  }
  return Draw(row, vocab_size, [&](int v) { return p.IsIn(v) ? p.LogWeight(v) : -INFINITY; });
}

// The row as what its draft was drawn from: the probability of a token.
class DraftWeights {
 public:
  DraftWeights(const SampleRow& row, int vocab_size)
      : row_(row), weights_(row.draft_logits == nullptr ? row.logits : row.draft_logits, row, vocab_size) {
    if (row.draft_logits != nullptr) weights_.SetStatistics(*row.draft_statistics);
  }
  double Probability(int token) const {
    if (row_.draft_logits == nullptr) return token == row_.draft ? 1 : 0;
    return weights_.Probability(token);
  }

 private:
  const SampleRow& row_;
  Weights weights_;
};

struct Verdict {
  bool accepted = false;
  int32_t token = 0;  // when not accepted
};

Verdict JudgeByRejection(const Weights& p, const SampleRow& row, int vocab_size) {
  const DraftWeights q(row, vocab_size);
  const bool accepted = row.acceptance_probability >= 0
                            ? row.acceptance_noise < row.acceptance_probability
                            : row.acceptance_noise * q.Probability(row.draft) < p.Probability(row.draft);
  if (accepted) return {.accepted = true};
  if (row.inverse_temperature == 0) return {.token = DrawFrom(p, row, vocab_size)};
  const int32_t token = Draw(row, vocab_size, [&](int v) {
    const double left = p.Probability(v) - q.Probability(v);
    return left > 0 ? std::log(left) : -INFINITY;
  });
  return {.token = token >= 0 ? token : DrawFrom(p, row, vocab_size)};
}

}  // namespace

void SampleRef(const KernelContext&, const SampleArgs& args) {
  for (int s = 0; s < args.num_sequences; ++s) {
    const SampleSequence& sequence = args.sequences[s];
    bool done = false;
    for (int k = 0; k <= sequence.num_drafts; ++k) {
      const int r = sequence.first_row + k;
      const SampleRow& row = args.rows[r];
      Weights p(row.logits, row, args.vocab_size);
      if ((row.top_k > 0 || row.top_p < 1) && p.can_draw()) p.Cut();
      if (args.normalize) p.Normalize();
      if (args.statistics != nullptr) args.statistics[r] = p.statistics();
      if (done) continue;
      Verdict verdict;
      if (p.can_draw() && sequence.by_rejection != 0 && k < sequence.num_drafts) {
        verdict = JudgeByRejection(p, row, args.vocab_size);
      } else if (p.can_draw()) {
        verdict.token = DrawFrom(p, row, args.vocab_size);
        verdict.accepted = k < sequence.num_drafts && verdict.token == row.draft;
      }
      if (verdict.accepted) continue;
      done = true;
      args.accepted[s] = p.can_draw() ? k : kSampleError;
      args.tokens[s] = verdict.token;
    }
  }
}

}  // namespace foresight
