#include "verify/draft_rounds.h"

#include <algorithm>
#include <numeric>

namespace foresight {
namespace {

// Records the experts of one round's stages, or replaces them.
class ExpertRecorder : public StepObserver {
 public:
  ExpertRecorder(int first_layer, std::span<std::vector<int32_t>> chosen,
                 std::span<const std::vector<int32_t>> forced)
      : first_layer_(first_layer), chosen_(chosen), forced_(forced) {}

  bool OnExperts(int layer, std::span<int32_t> ids) override {
    const size_t stage = static_cast<size_t>(layer - first_layer_);
    chosen_[stage].assign(ids.begin(), ids.end());
    if (forced_.empty()) return false;
    std::copy(forced_[stage].begin(), forced_[stage].end(), ids.begin());
    return true;
  }
  void OnPicks(int, std::span<int32_t>) override {}
  void OnBlock(int, std::span<const float>) override {}

 private:
  int first_layer_;
  std::span<std::vector<int32_t>> chosen_;
  std::span<const std::vector<int32_t>> forced_;
};

}  // namespace

Result<DraftGolden> ReadDraftGolden(const Golden& golden, const ModelConfig& config, int64_t prompt_tokens) {
  DraftGolden rounds;
  ASSIGN_OR_RETURN(rounds.anchors, golden.Integers("dspark.anchor_positions", 1));
  ASSIGN_OR_RETURN(rounds.greedy_tokens, golden.Integers("dspark.greedy_tokens", 2));
  const std::vector<int64_t>& shape = golden.Shape("dspark.greedy_tokens");
  if (shape[0] != rounds.rounds() || shape[1] < 1 || shape[1] > config.dspark.block_size) {
    return InvalidArgument("golden dspark.greedy_tokens: want [{}, 1 to {}], got {}", rounds.rounds(),
                           config.dspark.block_size, ShapeToString(shape));
  }
  rounds.block = static_cast<int>(shape[1]);
  for (int64_t s : rounds.anchors) {
    if (s < 0 || s >= prompt_tokens) return InvalidArgument("golden anchor {} is outside the prompt", s);
  }
  for (int64_t id : rounds.greedy_tokens) {
    if (id < 0 || id >= config.vocab_size) {
      return InvalidArgument("golden draft token {} is outside the vocabulary", id);
    }
  }
  return rounds;
}

Result<DraftRounds> RunDraftRounds(Model& model, SequenceState& sequence, std::span<const TokenId> prompt,
                                   const DraftGolden& golden, const DraftRounds* forced) {
  const ModelConfig& c = model.config();
  const int64_t rows = golden.rounds() * golden.block;
  const size_t stages = model.weights().dspark->stages.size();
  DraftRounds rounds;
  rounds.hidden.resize(rows * c.hidden_size);
  rounds.base_logits.resize(rows * c.vocab_size);
  rounds.corrected_logits.resize(rows * c.vocab_size);
  rounds.greedy_tokens.resize(rows);
  rounds.experts.resize(golden.rounds() * stages);

  std::vector<int64_t> order(golden.rounds());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return golden.anchors[a] > golden.anchors[b]; });
  for (int64_t round : order) {
    const int64_t s = golden.anchors[round];
    RETURN_IF_ERROR(sequence.Truncate(s));
    const std::span chosen = std::span(rounds.experts).subspan(round * stages, stages);
    const std::span<const std::vector<int32_t>> experts =
        forced == nullptr ? std::span<const std::vector<int32_t>>()
                          : std::span(forced->experts).subspan(round * stages, stages);
    ExpertRecorder recorder(c.num_hidden_layers, chosen, experts);
    SequenceState* const sequences[] = {&sequence};
    const TokenId anchors[] = {prompt[s]};
    ASSIGN_OR_RETURN(
        const DraftBlockOutputs out,
        model.DraftBlock(
            {.sequences = sequences, .anchors = anchors, .block = golden.block, .observer = &recorder}));
    const int64_t first = round * golden.block;
    std::copy(out.hidden.begin(), out.hidden.end(), rounds.hidden.begin() + first * c.hidden_size);
    std::copy(out.base_logits.begin(), out.base_logits.end(),
              rounds.base_logits.begin() + first * c.vocab_size);
    TokenId previous = prompt[s];
    for (int k = 0; k < golden.block; ++k) {
      ASSIGN_OR_RETURN(const DraftHeadOutputs head, model.DraftHead(k, {&previous, 1}));
      std::copy(head.logits.begin(), head.logits.end(),
                rounds.corrected_logits.begin() + (first + k) * c.vocab_size);
      if (!head.confidence_logits.empty()) {
        rounds.confidence_logits.resize(rows);
        rounds.confidence_logits[first + k] = head.confidence_logits[0];
      }
      rounds.greedy_tokens[first + k] =
          std::max_element(head.logits.begin(), head.logits.end()) - head.logits.begin();
      previous = static_cast<TokenId>(golden.greedy_tokens[first + k]);
    }
  }
  return rounds;
}

}  // namespace foresight
