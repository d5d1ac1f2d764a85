// MTP-1, fed with the model's streams and then with its own: against a direct evaluation of model spec 2.11
// in float64, one row at a time and without caches, and independent of the batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/draft_fixture.h"
#include "model/rope.h"

namespace foresight {
namespace {

using Values = std::vector<double>;

ModelConfig SmallMtpConfig() {
  ModelConfig c = TinyAConfig();
  c.vocab_size = 64;
  c.hidden_size = 64;
  c.num_hidden_layers = 1;
  c.layers = {LayerKind::kSwa};
  c.num_hash_layers = 0;
  c.num_attention_heads = 2;
  c.q_lora_rank = 32;
  c.o_groups = 1;
  c.o_lora_rank = 32;
  c.sliding_window = 6;
  c.n_routed_experts = 3;
  c.moe_intermediate_size = 32;
  c.swiglu_limit = 0.7;  // active
  return c;
}

double Sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

Values Multiply(const MatrixView& w, const Values& x) {
  std::vector<float> row(w.cols);
  Values y(w.rows, 0);
  for (int64_t n = 0; n < w.rows; ++n) {
    w.DecodeRow(n, row.data());
    for (int64_t i = 0; i < w.cols; ++i) y[n] += row[i] * x[i];
  }
  return y;
}

// One row's four streams.
using Streams = std::vector<Values>;

// The block of one MTP row after another; the block has no other input than the rows it was given.
class DirectMtp {
 public:
  explicit DirectMtp(const ModelWeights& weights) : w_(weights), c_(weights.config), mtp_(*weights.mtp) {}

  // The next row, at the next position: its output streams.
  Streams Next(const Streams& h, TokenId token) {
    std::vector<float> embedded(c_.hidden_size);
    w_.embed.DecodeRow(token, embedded.data());
    const Values e = Multiply(mtp_.e_proj, Rms({embedded.begin(), embedded.end()}, &mtp_.enorm));
    Streams z;
    for (const Values& stream : h) {
      z.push_back(Multiply(mtp_.h_proj, Rms(stream, &mtp_.hnorm)));
      for (size_t i = 0; i < e.size(); ++i) z.back()[i] += e[i];
    }
    const BlockWeights& block = mtp_.block;
    SubLayer(block.hc_attn, block.attn_norm, &z, [&](const Values& x) { return Attention(x); });
    SubLayer(block.hc_ffn, block.ffn_norm, &z, [&](const Values& x) { return Experts(x); });
    ++position_;
    return z;
  }

  Values Logits(const Streams& z) const {
    const Values flat = Flatten(z);
    const Values mix = Multiply(mtp_.hc_head.fn, flat);
    Values y(c_.hidden_size, 0);
    for (size_t j = 0; j < z.size(); ++j) {
      const double share =
          Sigmoid(mix[j] * InverseRms(flat) * mtp_.hc_head.scale[0] + mtp_.hc_head.base[j]) + c_.hc_eps;
      for (size_t i = 0; i < y.size(); ++i) y[i] += share * z[j][i];
    }
    return Multiply(w_.head, Rms(y, &mtp_.norm));
  }

 private:
  static Values Flatten(const Streams& z) {
    Values flat;
    for (const Values& stream : z) flat.insert(flat.end(), stream.begin(), stream.end());
    return flat;
  }
  double InverseRms(const Values& x) const {
    const double square = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
    return 1 / std::sqrt(square / static_cast<double>(x.size()) + c_.rms_norm_eps);
  }
  Values Rms(const Values& x, const VectorView* weight) const {
    const double scale = InverseRms(x);
    Values y = x;
    for (size_t i = 0; i < y.size(); ++i) y[i] *= scale * (weight ? (*weight)[static_cast<int64_t>(i)] : 1.0);
    return y;
  }

  template <typename Layer>
  void SubLayer(const HyperConnectionWeights& hc, const VectorView& norm, Streams* z, const Layer& layer) {
    const size_t m = z->size();
    const Values flat = Flatten(*z);
    Values mix = Multiply(hc.fn, flat);
    for (double& v : mix) v *= InverseRms(flat);
    Values x(c_.hidden_size, 0);
    for (size_t j = 0; j < m; ++j) {
      const double pre = Sigmoid(mix[j] * hc.scale[0] + hc.base[j]) + c_.hc_eps;
      for (size_t i = 0; i < x.size(); ++i) x[i] += pre * (*z)[j][i];
    }
    // Sinkhorn: rows by softmax, then columns and rows in turn.
    std::vector<Values> comb(m, Values(m));
    for (size_t j = 0; j < m; ++j) {
      double sum = 0;
      for (size_t k = 0; k < m; ++k) {
        const size_t at = 2 * m + j * m + k;
        comb[j][k] = std::exp(mix[at] * hc.scale[2] + hc.base[at]);
        sum += comb[j][k];
      }
      for (double& v : comb[j]) v = v / sum + c_.hc_eps;
    }
    for (int iteration = 0; iteration < c_.hc_sinkhorn_iters; ++iteration) {
      for (size_t j = 0; iteration > 0 && j < m; ++j) {
        const double sum = std::accumulate(comb[j].begin(), comb[j].end(), c_.hc_eps);
        for (double& v : comb[j]) v /= sum;
      }
      for (size_t k = 0; k < m; ++k) {
        double sum = c_.hc_eps;
        for (size_t j = 0; j < m; ++j) sum += comb[j][k];
        for (size_t j = 0; j < m; ++j) comb[j][k] /= sum;
      }
    }
    const Values y = layer(Rms(x, &norm));
    Streams out(m, Values(c_.hidden_size, 0));
    for (size_t k = 0; k < m; ++k) {
      const double post = 2 * Sigmoid(mix[m + k] * hc.scale[1] + hc.base[m + k]);
      for (size_t i = 0; i < y.size(); ++i) {
        out[k][i] = post * y[i];
        for (size_t j = 0; j < m; ++j) out[k][i] += comb[j][k] * (*z)[j][i];
      }
    }
    *z = std::move(out);
  }

  // Rotates the last dims of x by the position's angles (backwards: -1).
  void Rotate(double direction, std::span<double> x) const {
    const std::vector<float> frequencies = WindowRopeFrequencies(c_);
    double* v = x.data() + x.size() - 2 * frequencies.size();
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = direction * (static_cast<float>(position_) * frequencies[i]);
      const double a = v[2 * i], b = v[2 * i + 1];
      v[2 * i] = a * std::cos(angle) - b * std::sin(angle);
      v[2 * i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }

  Values Attention(const Values& x) {
    const AttentionWeights& attn = mtp_.block.attn;
    const size_t d = static_cast<size_t>(c_.head_dim);
    keys_.push_back(Rms(Multiply(attn.wkv, x), &attn.kv_norm));
    Rotate(1, keys_.back());
    if (keys_.size() > static_cast<size_t>(c_.sliding_window)) keys_.erase(keys_.begin());
    const Values q = Multiply(attn.wq_b, Rms(Multiply(attn.wq_a, x), &attn.q_norm));
    Values out;
    for (int h = 0; h < c_.num_attention_heads; ++h) {
      Values head = Rms({q.begin() + h * d, q.begin() + (h + 1) * d}, nullptr);
      Rotate(1, head);
      double sum = std::exp(attn.attn_sink[h]);
      Values o(d, 0);
      for (const Values& key : keys_) {
        const double dot = std::inner_product(head.begin(), head.end(), key.begin(), 0.0);
        const double weight = std::exp(dot / std::sqrt(d));
        sum += weight;
        for (size_t i = 0; i < d; ++i) o[i] += weight * key[i];
      }
      for (double& v : o) v /= sum;
      Rotate(-1, o);
      out.insert(out.end(), o.begin(), o.end());
    }
    return Multiply(attn.wo_b, Multiply(attn.wo_a, out));  // one group
  }

  Values Expert(const ExpertWeights& w, const Values& x, double weight) const {
    const Values gate = Multiply(w.w1, x);
    Values a = Multiply(w.w3, x);
    for (size_t i = 0; i < a.size(); ++i) {
      const double g = std::min(gate[i], c_.swiglu_limit);
      a[i] = weight * g * Sigmoid(g) * std::clamp(a[i], -c_.swiglu_limit, c_.swiglu_limit);
    }
    return Multiply(w.w2, a);
  }
  Values Experts(const Values& x) const {
    const MoeWeights& moe = mtp_.block.ffn;
    Values score = Multiply(moe.gate, x);
    for (double& s : score) s = std::sqrt(std::log1p(std::exp(s)));
    std::vector<int> order(score.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return score[a] + moe.gate_bias[a] > score[b] + moe.gate_bias[b]; });
    order.resize(c_.num_experts_per_tok);
    double sum = 0;
    for (int e : order) sum += score[e];
    Values y = Expert(moe.shared, x, 1);
    for (int e : order) {
      const Values out = Expert(moe.experts[e], x, score[e] / sum * c_.routed_scaling_factor);
      for (size_t i = 0; i < y.size(); ++i) y[i] += out[i];
    }
    return y;
  }

  const ModelWeights& w_;
  const ModelConfig& c_;
  const MtpWeights& mtp_;
  std::vector<Values> keys_;
  int64_t position_ = 0;
};

const LoadedModel& SmallMtpModel() {
  static const LoadedModel* model = new LoadedModel(MakeSyntheticModel(SmallMtpConfig(), {.seed = 11}));
  return *model;
}

StepOutputs MtpStep(Model& model, const std::vector<SequenceState*>& sequences,
                    const std::vector<TokenId>& tokens, const std::vector<int32_t>& stream_rows,
                    StreamSource source) {
  const int each = static_cast<int>(tokens.size() / sequences.size());
  std::vector<SequenceChunk> chunks;
  for (SequenceState* s : sequences) chunks.push_back({.sequence = s, .num_rows = each});
  std::vector<int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  const Result<StepOutputs> out =
      model.MtpStep({.tokens = tokens, .chunks = chunks, .logit_rows = rows}, stream_rows, source);
  CHECK(out.ok(), "{}", out.status().ToString());
  return *out;
}

void ExpectNear(std::span<const float> got, const Values& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::fabs(got[i] - want[i]));
  EXPECT_LE(worst, 5e-5) << what;
}

// The streams after the last block.
class LastStreams : public StepObserver {
 public:
  bool OnExperts(int, std::span<int32_t>) override { return false; }
  void OnPicks(int, std::span<int32_t>) override {}
  void OnBlock(int, std::span<const float> s) override { streams.assign(s.begin(), s.end()); }

  std::vector<float> streams;
};

TEST(MtpChain, FollowsTheDirectEvaluation) {
  const ModelConfig c = SmallMtpConfig();
  DraftHost host(SmallMtpModel().weights, RefKernels(), Numerics::kClean);
  const std::vector<TokenId> tokens = RandomTokens(16, c.vocab_size, 4);
  const int prompt = 10;
  SequenceState sequence = host.NewSequence();
  const SequenceChunk chunk[] = {{.sequence = &sequence, .num_rows = prompt}};
  LastStreams last;
  const Result<StepOutputs> step = host.model().Step(
      {.tokens = std::span(tokens).first(prompt), .chunks = chunk, .logit_rows = {}, .observer = &last});
  ASSERT_TRUE(step.ok());
  const size_t d = static_cast<size_t>(c.hidden_size);
  const auto streams_of = [&](std::span<const float> all, size_t row) {
    Streams h;
    for (size_t j = 0; j < 4; ++j) {
      const auto begin = all.begin() + (row * 4 + j) * d;
      h.emplace_back(begin, begin + d);
    }
    return h;
  };
  DirectMtp direct(SmallMtpModel().weights);
  std::vector<Streams> z;
  for (int p = 0; p < prompt; ++p) z.push_back(direct.Next(streams_of(last.streams, p), tokens[p + 1]));

  std::vector<int32_t> rows(prompt);
  std::iota(rows.begin(), rows.end(), 0);
  const StepOutputs first =
      MtpStep(host.model(), {&sequence}, {tokens.begin() + 1, tokens.begin() + 1 + prompt}, rows,
              StreamSource::kStep);
  const size_t v = static_cast<size_t>(c.vocab_size);
  for (int p = 0; p < prompt; ++p) {
    ExpectNear(first.logits.subspan(p * v, v), direct.Logits(z[p]), fmt::format("row {}", p));
  }
  const std::vector<float> first_logits(first.logits.begin(), first.logits.end());
  int32_t source_row = prompt - 1;
  Streams h = z.back();
  for (int k = 0; k < 4; ++k) {
    const TokenId token = tokens[prompt + 1 + k];
    const StepOutputs out = MtpStep(host.model(), {&sequence}, {token}, {source_row}, StreamSource::kMtpStep);
    h = direct.Next(h, token);
    ExpectNear(out.logits, direct.Logits(h), fmt::format("chained {}", k));
    source_row = 0;
  }
  EXPECT_EQ(sequence.draft_length(), prompt + 4);
  // The chain keeps what it was made of.
  EXPECT_TRUE(std::equal(first_logits.begin(), first_logits.end(), first.logits.begin()));

  // Another step, and there is nothing to chain to.
  host.Step(sequence, std::span(tokens).subspan(prompt, 1));
  const SequenceChunk draft[] = {{.sequence = &sequence, .num_rows = 1}};
  const int32_t row[] = {0};
  EXPECT_EQ(host.model()
                .MtpStep({.tokens = std::span(tokens).first(1), .chunks = draft, .logit_rows = row}, row,
                         StreamSource::kMtpStep)
                .status()
                .code(),
            StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::equal(first_logits.begin(), first_logits.end(), first.logits.begin()));
}

// Rounds of two chained drafts and a step that keeps one of them, for a batch and for each sequence alone.
TEST(MtpChain, DoesntDependOnTheBatchOrOnRejectedDrafts) {
  for (const char* name : {"cpu-avx2", "cpu-avx512"}) {
    const Result<const KernelTable*> table = FindKernels(name);
    if (!table.ok()) continue;
    DraftHost host(SmallMtpModel().weights, **table, Numerics::kFaithful);
    Model& model = host.model();
    const size_t v = 64;
    std::vector<std::vector<TokenId>> tokens;
    for (uint64_t s = 0; s < 3; ++s) tokens.push_back(RandomTokens(40, 64, s));

    // [round][sequence]: the logits of the first draft and of a chained one.
    const auto run = [&](const std::vector<size_t>& who, int wrong) {
      std::vector<SequenceState> states;
      std::vector<SequenceState*> sequences;
      for (size_t i = 0; i < who.size(); ++i) states.push_back(host.NewSequence());
      for (SequenceState& s : states) sequences.push_back(&s);
      std::vector<std::vector<std::vector<float>>> logits(who.size());
      for (int p = 0; p < 30; p += 2) {
        std::vector<TokenId> rows, next;
        std::vector<SequenceChunk> chunks;
        for (size_t i = 0; i < who.size(); ++i) {
          const auto& t = tokens[who[i]];
          rows.insert(rows.end(), {t[p], t[p + 1]});
          next.insert(next.end(), {t[p + 1], t[p + 2]});
          for (int k = 0; k < wrong; ++k) rows.push_back(static_cast<TokenId>((p + k) % 64));
          chunks.push_back({.sequence = sequences[i], .num_rows = 2 + wrong});
        }
        CHECK(model.Step({.tokens = rows, .chunks = chunks, .logit_rows = {}}).ok());
        std::vector<int32_t> from;
        for (size_t i = 0; i < who.size(); ++i) {
          CHECK(sequences[i]->Truncate(p + 2).ok());
          if (sequences[i]->draft_length() > p) CHECK(sequences[i]->TruncateDraft(p).ok());
          const int32_t row = static_cast<int32_t>(i) * (2 + wrong);
          from.insert(from.end(), {row, row + 1});
        }
        StepOutputs out = MtpStep(model, sequences, next, from, StreamSource::kStep);
        for (size_t i = 0; i < who.size(); ++i) {
          const auto last = out.logits.subspan((2 * i + 1) * v, v);
          logits[i].emplace_back(last.begin(), last.end());
        }
        std::vector<int32_t> ends;
        std::vector<TokenId> drafted;
        for (size_t i = 0; i < who.size(); ++i) {
          ends.push_back(static_cast<int32_t>(2 * i + 1));
          drafted.push_back(static_cast<TokenId>((7 * p + tokens[who[i]][p]) % 64));
        }
        out = MtpStep(model, sequences, drafted, ends, StreamSource::kMtpStep);
        for (size_t i = 0; i < who.size(); ++i) {
          logits[i].emplace_back(out.logits.begin() + i * v, out.logits.begin() + (i + 1) * v);
        }
      }
      return logits;
    };
    const auto together = run({0, 1, 2}, 3);
    for (size_t s = 0; s < 3; ++s) EXPECT_EQ(run({s}, 0)[0], together[s]) << name << " sequence " << s;
  }
}

}  // namespace
}  // namespace foresight
