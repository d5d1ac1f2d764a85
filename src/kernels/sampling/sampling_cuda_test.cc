#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/rng.h"
#include "kernels/cache_fixture.h"
#include "kernels/cuda/device_fixture.h"
#include "kernels/sampling/sampling.h"

namespace foresight::sampling_cuda_test {
namespace {

// Sequences with random logits and drafts; pointers of rows stand for indices into `logits`.
struct Batch {
  int vocab_size = 0;
  std::vector<std::vector<float>> logits;
  std::vector<SampleRow> rows;
  std::vector<int> row_logits;    // [R] of `logits`
  std::vector<int> draft_logits;  // [R], -1: none
  std::vector<RowStatistics> draft_statistics;
  std::vector<SampleSequence> sequences;
};

struct Outcome {
  std::vector<int32_t> accepted, tokens;
  std::vector<RowStatistics> statistics;
};

class BatchMaker {
 public:
  BatchMaker(int vocab_size, uint64_t seed) : rng_(seed) { batch_.vocab_size = vocab_size; }

  // `like`: a row whose logits the new ones resemble, or -1.
  int Logits(double spread, int like) {
    std::normal_distribution<float> normal(0, static_cast<float>(spread));
    std::vector<float> row(batch_.vocab_size);
    for (size_t v = 0; v < row.size(); ++v) {
      row[v] = normal(rng_) + (like < 0 ? 0 : batch_.logits[like][v]);
    }
    if (Below(4) == 0) {  // equal ones, and masked ones
      for (float& x : row) x = Below(8) == 0 ? -INFINITY : std::round(x);
    }
    batch_.logits.push_back(std::move(row));
    return static_cast<int>(batch_.logits.size()) - 1;
  }

  void AddSequence(int num_drafts, bool by_rejection) {
    constexpr double kTemperatures[] = {0.05, 0.7, 1, 1.3, 20};
    const bool greedy = !by_rejection && Below(6) == 0;
    const double inverse = greedy ? 0 : 1 / kTemperatures[Below(5)];
    const double lowest = Below(3) == 0 ? std::log(0.02) : -DBL_MAX;
    const double top_p = greedy || Below(2) == 0 ? 1 : AnyTopP();
    const int32_t top_k = greedy || Below(2) == 0 ? 0 : AnyTopK();
    const auto s = static_cast<int32_t>(batch_.sequences.size());
    batch_.sequences.push_back({.first_row = static_cast<int32_t>(batch_.rows.size()),
                                .num_drafts = num_drafts,
                                .by_rejection = by_rejection});
    for (int k = 0; k <= num_drafts; ++k) {
      const int p = Logits(2, -1);
      SampleRow row = {.inverse_temperature = inverse,
                       .lowest_log_weight = lowest,
                       .noise = rng_(),
                       .sequence = s,
                       .acceptance_noise = std::uniform_real_distribution<double>()(rng_),
                       .top_p = top_p,
                       .top_k = top_k};
      int q = -1;
      RowStatistics statistics;
      if (k < num_drafts) {
        // Drawn by the definition, as a drafter would: with the noise of the row where it is coupled.
        q = Logits(0.3, p);
        SampleRow draw = row;
        draw.logits = batch_.logits[q].data();
        draw.sequence = 0;
        if (by_rejection) draw.noise = rng_();
        const SampleSequence alone;
        int32_t accepted = 0;
        SampleRef({}, {.num_rows = 1,
                       .num_sequences = 1,
                       .vocab_size = batch_.vocab_size,
                       .normalize = true,
                       .has_min_p = true,
                       .has_cuts = true,
                       .rows = &draw,
                       .sequences = &alone,
                       .accepted = &accepted,
                       .tokens = &row.draft,
                       .statistics = &statistics});
        if (by_rejection && Below(4) == 0) q = -1;  // as if it had been chosen
        if (by_rejection && Below(4) == 0) row.acceptance_probability = 0.6;
      }
      batch_.rows.push_back(row);
      batch_.row_logits.push_back(p);
      batch_.draft_logits.push_back(by_rejection ? q : -1);
      batch_.draft_statistics.push_back(statistics);
    }
  }

  double AnyTopP() {
    constexpr double kTopPs[] = {1e-9, 0.3, 0.9, 0.95, 0.999, 1 - 1e-6};
    return kTopPs[Below(6)];
  }
  // Few, and more than a block puts in order, than what min_p leaves, than there are.
  int32_t AnyTopK() {
    const int counts[] = {1, 2, 40, 3000, batch_.vocab_size / 2 + 1, batch_.vocab_size + 5};
    return counts[Below(6)];
  }
  int Below(int n) { return static_cast<int>(rng_() % n); }
  Batch& batch() { return batch_; }

 private:
  std::mt19937_64 rng_;
  Batch batch_;
};

Outcome RunRef(Batch batch) {
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    SampleRow& row = batch.rows[r];
    row.logits = batch.logits[batch.row_logits[r]].data();
    if (batch.draft_logits[r] < 0) continue;
    row.draft_logits = batch.logits[batch.draft_logits[r]].data();
    row.draft_statistics = &batch.draft_statistics[r];
  }
  Outcome out;
  out.accepted.resize(batch.sequences.size());
  out.tokens.resize(batch.sequences.size());
  out.statistics.resize(batch.rows.size());
  SampleRef({}, {.num_rows = static_cast<int>(batch.rows.size()),
                 .num_sequences = static_cast<int>(batch.sequences.size()),
                 .vocab_size = batch.vocab_size,
                 .normalize = true,
                 .has_min_p = true,
                 .has_cuts = true,
                 .rows = batch.rows.data(),
                 .sequences = batch.sequences.data(),
                 .accepted = out.accepted.data(),
                 .tokens = out.tokens.data(),
                 .statistics = out.statistics.data()});
  return out;
}

class SampleCuda : public OnDevice<> {
 protected:
  Outcome Run(Batch batch, bool normalize = true) {
    device_->Clear();
    std::vector<const float*> logits;
    for (const auto& row : batch.logits) logits.push_back(device_->Upload(row));
    const RowStatistics* statistics = device_->Upload(batch.draft_statistics);
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      SampleRow& row = batch.rows[r];
      row.logits = logits[batch.row_logits[r]];
      if (batch.draft_logits[r] < 0) continue;
      row.draft_logits = logits[batch.draft_logits[r]];
      row.draft_statistics = statistics + r;
    }
    const int64_t num_rows = std::ssize(batch.rows);
    const int64_t num_sequences = std::ssize(batch.sequences);
    const SampleArgs args = {
        .num_rows = static_cast<int>(num_rows),
        .num_sequences = static_cast<int>(num_sequences),
        .vocab_size = batch.vocab_size,
        .normalize = normalize,
        .has_min_p = std::any_of(batch.rows.begin(), batch.rows.end(),
                                 [](const SampleRow& row) { return row.lowest_log_weight > -DBL_MAX; }),
        .has_cuts = std::any_of(batch.rows.begin(), batch.rows.end(),
                                [](const SampleRow& row) { return row.top_k > 0 || row.top_p < 1; }),
        .rows = device_->Upload(batch.rows),
        .sequences = device_->Upload(batch.sequences),
        .accepted = device_->Allocate<int32_t>(num_sequences),
        .tokens = device_->Allocate<int32_t>(num_sequences),
        .statistics = normalize ? device_->Allocate<RowStatistics>(num_rows) : nullptr};
    table_->sample(device_->context(Numerics::kFaithful), args);
    Outcome out{.accepted = device_->Download(args.accepted, num_sequences),
                .tokens = device_->Download(args.tokens, num_sequences),
                .statistics = {}};
    if (normalize) out.statistics = device_->Download(args.statistics, num_rows);
    return out;
  }
};

void ExpectSame(const Outcome& got, const Outcome& want) {
  EXPECT_EQ(got.accepted, want.accepted);
  EXPECT_EQ(got.tokens, want.tokens);
  for (size_t r = 0; r < got.statistics.size(); ++r) {
    EXPECT_EQ(got.statistics[r].largest, want.statistics[r].largest) << r;
    if (!std::isfinite(want.statistics[r].log_normalizer)) continue;  // everything is masked
    EXPECT_EQ(got.statistics[r].cut.logit, want.statistics[r].cut.logit) << r;
    EXPECT_EQ(got.statistics[r].cut.token, want.statistics[r].cut.token) << r;
    EXPECT_NEAR(got.statistics[r].log_normalizer, want.statistics[r].log_normalizer, 1e-11) << r;
  }
}

TEST_F(SampleCuda, DrawsAndJudgesAsTheDefinition) {
  const struct {
    int vocab_size, batches, sequences;
  } cases[] = {{1, 2, 20},    {5, 20, 40},    {2047, 5, 30},  {2048, 5, 30},
               {2049, 5, 30}, {8192, 40, 24}, {129280, 2, 12}};
  for (const auto& c : cases) {
    int64_t accepted = 0;
    for (int b = 0; b < c.batches; ++b) {
      BatchMaker maker(c.vocab_size, 1000 * c.vocab_size + b);
      for (int s = 0; s < c.sequences; ++s) maker.AddSequence(maker.Below(6), maker.Below(2) == 0);
      const Outcome want = RunRef(maker.batch());
      ExpectSame(Run(maker.batch()), want);
      for (int32_t n : want.accepted) accepted += n;
      if (HasFailure()) FAIL() << "vocabulary of " << c.vocab_size << ", batch " << b;
    }
    EXPECT_GT(accepted, c.batches * c.sequences / 2) << c.vocab_size;
  }
}

void RemoveCuts(Batch& batch) {
  for (SampleRow& row : batch.rows) {
    row.lowest_log_weight = -DBL_MAX;
    row.top_p = 1;
    row.top_k = 0;
  }
}

// Without drafts by rejection and without cuts one pass does.
TEST_F(SampleCuda, RowsThatAllDrawTakeOnePass) {
  for (const int vocab_size : {1, 5, 2049, 8192, 129280}) {
    for (const int num_drafts : {0, 3}) {
      for (const bool normalize : {false, true}) {
        BatchMaker maker(vocab_size, 3);
        for (int s = 0; s < 2000000 / (vocab_size + 20000); ++s) maker.AddSequence(num_drafts, false);
        RemoveCuts(maker.batch());
        const Outcome want = RunRef(maker.batch());
        ExpectSame(Run(maker.batch(), normalize), want);
        if (HasFailure()) FAIL() << vocab_size << ", " << num_drafts << " drafts";
      }
    }
  }
}

// Sums that lie within rounding of float32: the exact ones decide.
TEST_F(SampleCuda, CloseScoresAreToldApart) {
  constexpr int kVocab = 9000;
  BatchMaker maker(kVocab, 8);
  for (int s = 0; s < 40; ++s) maker.AddSequence(0, false);
  Batch& batch = maker.batch();
  RemoveCuts(batch);
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    batch.rows[r].inverse_temperature = r % 2 == 0 ? 0 : 1;
    std::vector<float>& logits = batch.logits[batch.row_logits[r]];
    const RandomSequence noise = RandomSequence::FromState(batch.rows[r].noise);
    for (int v = 0; v < kVocab; ++v) {  // cancels the noise but for a little
      const double t = (static_cast<double>(noise.Bits53(v)) + 0.5) * 0x1p-53;
      const double gumbel = -std::log(-std::log1p(-t));
      logits[v] = static_cast<float>((r % 2 == 0 ? 0 : -gumbel) + (v * 7919 % 101) * 1e-5);
    }
  }
  ExpectSame(Run(batch), RunRef(batch));
  ExpectSame(Run(batch, /*normalize=*/false), RunRef(batch));
}

// Rows in which a cut falls among many tokens that are equal, or nearly so; and among zeros of either sign.
TEST_F(SampleCuda, CutsFallAmongEqualLogits) {
  for (const int vocab_size : {100, 5000, 129280}) {
    BatchMaker maker(vocab_size, 9);
    for (int s = 0; s < 48; ++s) maker.AddSequence(0, false);
    Batch& batch = maker.batch();
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      SampleRow& row = batch.rows[r];
      row.inverse_temperature = 0.5;
      row.top_p = r % 3 == 0 ? 1 : maker.AnyTopP();
      row.top_k = r % 3 == 1 ? 0 : maker.AnyTopK();
      std::vector<float>& logits = batch.logits[batch.row_logits[r]];
      for (int v = 0; v < vocab_size; ++v) {
        const auto few = static_cast<float>(maker.Below(3));
        const float values[] = {3, few, few * 1e-6f, v % 2 == 0 ? 0.0f : -0.0f};
        logits[v] = values[r % 4];
      }
      if (r % 8 > 4) logits[maker.Below(vocab_size)] = 8;
    }
    ExpectSame(Run(batch), RunRef(batch));
    if (HasFailure()) FAIL() << vocab_size;
  }
}

// A temperature at which all but the largest logit have no weight left, and one at which all have the same.
TEST_F(SampleCuda, CutsAtExtremeTemperatures) {
  BatchMaker maker(20000, 10);
  for (int s = 0; s < 30; ++s) maker.AddSequence(0, false);
  Batch& batch = maker.batch();
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    constexpr double kInverse[] = {0.01, 1e3, 1e9};
    batch.rows[r].inverse_temperature = kInverse[r % 3];
    batch.rows[r].lowest_log_weight = -DBL_MAX;
    batch.rows[r].top_k = r % 2 == 0 ? 50 : 4000;
    batch.rows[r].top_p = r % 5 < 3 ? 1 : 0.9;
  }
  ExpectSame(Run(batch), RunRef(batch));
}

TEST_F(SampleCuda, ASequenceIsWhatItIsAlone) {
  BatchMaker maker(5000, 4);
  for (int s = 0; s < 30; ++s) maker.AddSequence(s % 6, s % 2 == 0);
  const Outcome all = Run(maker.batch());
  for (size_t s = 0; s < maker.batch().sequences.size(); s += 7) {
    Batch alone = maker.batch();
    SampleSequence& sequence = alone.sequences[s];
    const auto part = [&](auto& values) {
      values = {values.begin() + sequence.first_row,
                values.begin() + sequence.first_row + sequence.num_drafts + 1};
    };
    part(alone.rows);
    part(alone.row_logits);
    part(alone.draft_logits);
    part(alone.draft_statistics);
    for (SampleRow& row : alone.rows) row.sequence = 0;
    const int first_row = std::exchange(sequence.first_row, 0);
    alone.sequences = {sequence};
    const Outcome one = Run(alone);
    EXPECT_EQ(one.accepted[0], all.accepted[s]);
    EXPECT_EQ(one.tokens[0], all.tokens[s]);
    for (size_t r = 0; r < one.statistics.size(); ++r) {
      EXPECT_EQ(one.statistics[r].log_normalizer, all.statistics[first_row + r].log_normalizer);
      EXPECT_EQ(one.statistics[r].cut.token, all.statistics[first_row + r].cut.token);
    }
  }
}

TEST_F(SampleCuda, RowsThatCannotBeDrawnFromAreErrorsWhereTheyAreLookedAt) {
  for (const bool in_one_pass : {false, true}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      BatchMaker maker(3000, 5);
      for (int s = 0; s < 16; ++s) maker.AddSequence(3, !in_one_pass && s % 2 == 0);
      Batch& batch = maker.batch();
      for (SampleRow& row : batch.rows) row.acceptance_probability = -1;
      if (in_one_pass) RemoveCuts(batch);
      for (int s = 0; s < 16; s += 3) {
        std::vector<float>& row = batch.logits[batch.row_logits[batch.sequences[s].first_row + s % 4]];
        if (bad == -INFINITY) {
          std::fill(row.begin(), row.end(), bad);
        } else {
          row[2999 - 100 * s] = bad;
        }
      }
      const Outcome want = RunRef(batch);
      EXPECT_GT(std::count(want.accepted.begin(), want.accepted.end(), kSampleError), 0);
      const Outcome got = Run(batch, /*normalize=*/!in_one_pass);
      EXPECT_EQ(got.accepted, want.accepted);
      for (size_t s = 0; s < want.tokens.size(); ++s) {
        EXPECT_EQ(got.tokens[s], want.accepted[s] == kSampleError ? 0 : want.tokens[s]) << s;
      }
    }
  }
}

TEST_F(SampleCuda, WhereNothingIsLeftOfTheDifferenceThePlainDrawIsTaken) {
  BatchMaker maker(4000, 6);
  for (int s = 0; s < 8; ++s) maker.AddSequence(2, true);
  Batch& batch = maker.batch();
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    batch.rows[r].acceptance_probability = 0;
    // The draft's row is the target's.
    if (batch.draft_logits[r] >= 0) batch.logits[batch.draft_logits[r]] = batch.logits[batch.row_logits[r]];
  }
  // With the normaliser of the device itself, equal to the bit.
  batch.draft_statistics = Run(batch).statistics;
  const Outcome got = Run(batch);
  Batch plain = batch;
  for (SampleSequence& sequence : plain.sequences) sequence.by_rejection = 0;
  for (SampleRow& row : plain.rows) row.draft = -1;  // nothing is accepted: the first row's draw
  const Outcome want = Run(plain);
  for (size_t s = 0; s < batch.sequences.size(); ++s) {
    EXPECT_EQ(got.accepted[s], 0);
    if (batch.draft_logits[batch.sequences[s].first_row] < 0) continue;  // chosen: something is left
    EXPECT_EQ(got.tokens[s], want.tokens[s]) << s;
  }
}

}  // namespace
}  // namespace foresight::sampling_cuda_test
