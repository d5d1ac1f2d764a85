// For tests of draft steps: a small DSpark model, and rounds of it as values.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "weights/synthetic.h"

namespace foresight {

// Every layer kind, two stages, a window that wraps early.
inline ModelConfig SmallDSparkConfig(MarkovHeadType type, int rank) {
  ModelConfig c = TinyAConfig();
  c.hidden_size = 128;
  c.vocab_size = 256;
  c.num_hidden_layers = 3;
  c.layers = {LayerKind::kSwa, LayerKind::kCsa, LayerKind::kHca};
  c.num_hash_layers = 1;
  c.num_attention_heads = 2;
  c.index_n_heads = 2;
  c.n_routed_experts = 4;
  c.sliding_window = 32;
  AddDSparkHead(&c, /*num_stages=*/2);
  c.dspark.target_layer_ids = {0, 2};
  c.dspark.markov_rank = rank;
  c.dspark.markov_head_type = type;
  return c;
}

inline const LoadedModel& SmallDSparkModel(MarkovHeadType type = MarkovHeadType::kVanilla) {
  static auto* models = new std::map<MarkovHeadType, LoadedModel>;
  if (!models->contains(type)) {
    models->emplace(type, MakeSyntheticModel(SmallDSparkConfig(type, 24), {.seed = 3, .num_threads = 2}));
  }
  return models->at(type);
}

// What one sequence's round gives.
struct DraftRound {
  std::vector<float> hidden;            // [block, D]
  std::vector<float> base_logits;       // [block, V]
  std::vector<float> corrected_logits;  // [block, V]
  std::vector<float> confidence;        // [block]

  bool operator==(const DraftRound&) const = default;
};

// A model with its cache, driven by a test.
class DraftHost {
 public:
  DraftHost(const ModelWeights& weights, const KernelTable& table, Numerics numerics, int threads = 2)
      : pool_(threads), model_(weights, table, pool_, {.numerics = numerics}) {
    Result<std::unique_ptr<KvCache>> cache =
        KvCache::Create(model_.cache_layout(),
                        {.budget_bytes = int64_t{1} << 28, .max_sequences = 8, .max_sequence_tokens = 1024});
    CHECK(cache.ok(), "{}", cache.status().ToString());
    cache_ = std::move(*cache);
  }

  Model& model() { return model_; }
  SequenceState NewSequence() {
    Result<SequenceState> s = cache_->NewSequence();
    CHECK(s.ok(), "{}", s.status().ToString());
    return std::move(*s);
  }
  void Step(SequenceState& sequence, std::span<const TokenId> tokens) {
    const SequenceChunk chunk[] = {{.sequence = &sequence, .num_rows = static_cast<int>(tokens.size())}};
    const Result<StepOutputs> out = model_.Step({.tokens = tokens, .chunks = chunk, .logit_rows = {}});
    CHECK(out.ok(), "{}", out.status().ToString());
  }
  // The tokens in chunks of at most `chunk`.
  SequenceState Prefill(std::span<const TokenId> tokens, int64_t chunk = 512) {
    SequenceState sequence = NewSequence();
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(chunk)) {
      Step(sequence, tokens.subspan(begin, std::min<size_t>(chunk, tokens.size() - begin)));
    }
    return sequence;
  }

  // One round for all sequences at once; paths[r] holds the anchor and the tokens that are drawn after it.
  std::vector<DraftRound> Draft(const std::vector<SequenceState*>& sequences,
                                const std::vector<std::vector<TokenId>>& paths, int block) {
    const size_t count = sequences.size();
    const size_t dim = static_cast<size_t>(model_.config().hidden_size);
    const size_t v = static_cast<size_t>(model_.config().vocab_size);
    std::vector<TokenId> previous;
    for (const auto& path : paths) previous.push_back(path[0]);
    const Result<DraftBlockOutputs> out =
        model_.DraftBlock({.sequences = sequences, .anchors = previous, .block = block});
    CHECK(out.ok(), "{}", out.status().ToString());
    std::vector<DraftRound> rounds(count);
    const auto append = [&](std::vector<float>& to, std::span<const float> from, size_t row, size_t width) {
      to.insert(to.end(), from.begin() + row * width, from.begin() + (row + 1) * width);
    };
    for (size_t i = 0; i < count * static_cast<size_t>(block); ++i) {
      append(rounds[i % count].hidden, out->hidden, i, dim);
      append(rounds[i % count].base_logits, out->base_logits, i, v);
    }
    for (int k = 0; k < block; ++k) {
      for (size_t r = 0; r < count; ++r) previous[r] = paths[r][k];
      const Result<DraftHeadOutputs> head = model_.DraftHead(k, previous);
      CHECK(head.ok(), "{}", head.status().ToString());
      for (size_t r = 0; r < count; ++r) {
        append(rounds[r].corrected_logits, head->logits, r, v);
        if (!head->confidence_logits.empty()) append(rounds[r].confidence, head->confidence_logits, r, 1);
      }
    }
    return rounds;
  }
  DraftRound Draft(SequenceState& sequence, const std::vector<TokenId>& path, int block = 5) {
    return Draft({&sequence}, {path}, block)[0];
  }

 private:
  ThreadPool pool_;
  Model model_;
  std::unique_ptr<KvCache> cache_;
};

inline std::vector<TokenId> RandomTokens(int64_t count, int vocab_size, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& t : tokens) t = static_cast<TokenId>(rng() % vocab_size);
  return tokens;
}

}  // namespace foresight
