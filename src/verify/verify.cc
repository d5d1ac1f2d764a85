#include "verify/verify.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "model/placement.h"
#include "verify/comparison.h"
#include "verify/draft_rounds.h"
#include "verify/golden.h"

namespace foresight {
namespace {

// The discrete choices of one step, per layer: rows of experts [T, K] and of picks [T, topk].
struct Choices {
  std::vector<std::vector<int32_t>> experts;
  std::vector<std::vector<int32_t>> picks;

  explicit Choices(size_t layers) : experts(layers), picks(layers) {}
};

// Records a step's choices and streams, and replaces the choices by given ones where there are any.
class Recorder : public StepObserver {
 public:
  Recorder(size_t layers, const Choices* forced, std::span<const int64_t> kept_rows, int64_t row_floats)
      : chosen(layers), streams(layers), forced_(forced), kept_rows_(kept_rows), row_floats_(row_floats) {}

  bool OnExperts(int layer, std::span<int32_t> ids) override {
    chosen.experts[layer].assign(ids.begin(), ids.end());
    if (forced_ == nullptr || forced_->experts[layer].size() != ids.size()) return false;
    std::copy(forced_->experts[layer].begin(), forced_->experts[layer].end(), ids.begin());
    return true;
  }
  void OnPicks(int layer, std::span<int32_t> picks) override {
    chosen.picks[layer].assign(picks.begin(), picks.end());
    if (forced_ != nullptr && forced_->picks[layer].size() == picks.size()) {
      std::copy(forced_->picks[layer].begin(), forced_->picks[layer].end(), picks.begin());
    }
  }
  void OnBlock(int layer, std::span<const float> s) override {
    for (int64_t row : kept_rows_) {
      streams[layer].insert(streams[layer].end(), s.begin() + row * row_floats_,
                            s.begin() + (row + 1) * row_floats_);
    }
  }

  Choices chosen;
  std::vector<std::vector<float>> streams;  // [layer][P, m, D]

 private:
  const Choices* forced_;
  std::span<const int64_t> kept_rows_;
  int64_t row_floats_;
};

// What one run over the golden's prompt gives.
struct PromptRun {
  Choices chosen;
  std::vector<float> logits;      // [T, V]
  std::vector<float> mtp_logits;  // [T-1, V]
  std::vector<std::vector<float>> streams;
  std::vector<std::vector<float>> compressed;  // [layer][entries, d]
  DraftRounds rounds;                          // when the golden has DSpark rounds
};

struct Place {
  const KernelTable& table;
  Device* device;  // null: the machine
};

class Verifier {
 public:
  Verifier(const ModelWeights& weights, const Place& tested, const Place& reference, ThreadPool& pool,
           Golden golden)
      : weights_(weights), tested_(tested), reference_(reference), pool_(pool), golden_(std::move(golden)) {}

  Result<VerifyReport> Run();

 private:
  const ModelConfig& config() const { return weights_.config; }
  Status ReadGolden();
  // A model with memory for its steps and a cache, for one run: nothing carries over.
  struct ModelRun {
    std::unique_ptr<Placement> placement;  // with a device of its own; the model knows its address
    std::unique_ptr<Model> model;
    std::unique_ptr<KvCache> cache;
  };
  Result<ModelRun> Prepare(const Place& place, ModelOptions options, int64_t tokens);
  Result<PromptRun> RunPrompt(const Place& place, const Choices* forced,
                              const DraftRounds* forced_rounds = nullptr);
  Result<std::vector<TokenId>> RunGreedy();
  Status CompareTensor(const std::string& name, size_t rank, const std::vector<float>& got, bool judged,
                       bool is_ref, VerifyReport& report);
  Status CompareRun(const PromptRun& run, bool is_ref, VerifyReport& report);
  Status CompareRounds(const DraftRounds& rounds, bool is_ref, VerifyReport& report);
  Status CompareGreedy(double logit_error, bool is_ref, VerifyReport& report);
  // Experts of one stage over all rounds.
  SetComparison CompareStageExperts(size_t stage, const DraftRounds& got, const DraftRounds& want) const;

  const ModelWeights& weights_;  // the host's
  const Place tested_;
  const Place reference_;
  ThreadPool& pool_;
  Golden golden_;
  std::vector<TokenId> tokens_;
  std::vector<int64_t> positions_;
  Choices oracle_{0};  // picks as the golden has them
  std::optional<DraftGolden> draft_;
};

Status Verifier::ReadGolden() {
  ASSIGN_OR_RETURN(const std::vector<int64_t> ids, golden_.Integers("input_ids", 1));
  for (int64_t id : ids) {
    if (id < 0 || id >= config().vocab_size)
      return InvalidArgument("golden input id {} is outside the vocabulary", id);
    tokens_.push_back(static_cast<TokenId>(id));
  }
  if (tokens_.empty()) return InvalidArgument("golden input_ids are empty");
  if (weights_.dspark && golden_.Contains("dspark.anchor_positions")) {
    ASSIGN_OR_RETURN(draft_, ReadDraftGolden(golden_, config(), std::ssize(tokens_)));
  }
  if (golden_.Contains("positions")) {
    ASSIGN_OR_RETURN(positions_, golden_.Integers("positions", 1));
  }
  for (int64_t p : positions_) {
    if (p < 0 || p >= std::ssize(tokens_))
      return InvalidArgument("golden position {} is outside the prompt", p);
  }
  const size_t layers = weights_.layers.size() + config().num_draft_layers;
  oracle_ = Choices(layers);
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const std::string name = fmt::format("layers.{}.topk", l);
    if (!golden_.Contains(name)) continue;
    ASSIGN_OR_RETURN(const std::vector<int64_t> picks, golden_.Integers(name, 2));
    const int64_t width = golden_.Shape(name)[1];
    if (golden_.Shape(name)[0] != std::ssize(tokens_) || width > config().index_topk) {
      return InvalidArgument("golden {} has the shape {}", name, ShapeToString(golden_.Shape(name)));
    }
    // The oracle's rows are as wide as its longest set, ours as wide as index_topk; both ascend with -1 at
    // one end.
    std::vector<int32_t>& rows = oracle_.picks[l];
    rows.assign(tokens_.size() * config().index_topk, -1);
    for (size_t t = 0; t < tokens_.size(); ++t) {
      int32_t* row = rows.data() + t * config().index_topk;
      for (int64_t i = 0; i < width; ++i) {
        const int64_t pick = picks[t * width + i];
        if (pick >= static_cast<int64_t>(t + 1) / 4) {
          return InvalidArgument("golden {}: row {} picks entry {}, which it can't see", name, t, pick);
        }
        if (pick >= 0) *row++ = static_cast<int32_t>(pick);
      }
      std::sort(rows.data() + t * config().index_topk, row);
    }
  }
  return Status();
}

Result<Verifier::ModelRun> Verifier::Prepare(const Place& place, ModelOptions options, int64_t tokens) {
  RETURN_IF_ERROR(CheckAddressSpace());
  ModelRun run;
  const ModelWeights* weights = &weights_;
  if (place.device != nullptr) {
    ASSIGN_OR_RETURN(Placement placement, PlaceModel(weights_, *place.device, options));
    run.placement = std::make_unique<Placement>(std::move(placement));
    weights = &run.placement->weights->weights;
  }
  run.model = std::make_unique<Model>(*weights, place.table, pool_, options);
  const CacheLayout& layout = run.model->cache_layout();
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens + 1;
  // Room for the blocks, the fixed part and the block table, which the cache counts to the byte.
  const int64_t budget = blocks * (layout.block_bytes + 64) + layout.fixed_bytes + (int64_t{1} << 20);
  ASSIGN_OR_RETURN(run.cache, KvCache::Create(layout, {.device = place.device,
                                                       .budget_bytes = budget,
                                                       .max_sequences = 1,
                                                       .max_sequence_tokens = blocks * kBlockTokens}));
  return run;
}

Result<PromptRun> Verifier::RunPrompt(const Place& place, const Choices* forced,
                                      const DraftRounds* forced_rounds) {
  const int rows = static_cast<int>(tokens_.size());
  const int64_t row_floats = int64_t{config().hc_mult} * config().hidden_size;
  // DSpark's anchors lie anywhere in the prompt: the sequence is cut back to each of them.
  ASSIGN_OR_RETURN(const ModelRun made, Prepare(place,
                                                {.numerics = Numerics::kClean,
                                                 .max_step_rows = std::max(rows, draft_ ? draft_->block : 0),
                                                 .rollback_tokens = draft_ ? rows : 0},
                                                rows));
  Model& model = *made.model;
  ASSIGN_OR_RETURN(SequenceState sequence, made.cache->NewSequence());

  const size_t layers = weights_.layers.size() + config().num_draft_layers;
  Recorder recorder(layers, forced, positions_, row_floats);
  std::vector<int32_t> all_rows(rows);
  std::iota(all_rows.begin(), all_rows.end(), 0);
  const SequenceChunk chunk[] = {{.sequence = &sequence, .num_rows = rows}};
  ASSIGN_OR_RETURN(
      const StepOutputs out,
      model.Step({.tokens = tokens_, .chunks = chunk, .logit_rows = all_rows, .observer = &recorder}));
  PromptRun run{.chosen = Choices(0),
                .logits = {out.logits.begin(), out.logits.end()},
                .mtp_logits = {},
                .streams = {},
                .compressed = {},
                .rounds = {}};

  std::vector<std::byte> entry(static_cast<size_t>(model.cache_layout().entry.bytes()));
  run.compressed.resize(weights_.layers.size());
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    if (weights_.layers[l].kind == LayerKind::kSwa) continue;
    const int64_t entries = rows / static_cast<int>(weights_.layers[l].kind);
    run.compressed[l].resize(entries * config().head_dim);
    for (int64_t s = 0; s < entries; ++s) {
      RETURN_IF_ERROR(model.device().Download(entry.data(), sequence.CompressedEntry(static_cast<int>(l), s),
                                              std::ssize(entry)));
      DecodeEntry(model.cache_layout().entry, entry.data(), run.compressed[l].data() + s * config().head_dim);
    }
  }
  if (weights_.mtp && rows > 1) {
    const SequenceChunk draft[] = {{.sequence = &sequence, .num_rows = rows - 1}};
    const std::span<const int32_t> stream_rows(all_rows.data(), rows - 1);
    ASSIGN_OR_RETURN(const StepOutputs mtp, model.MtpStep({.tokens = std::span(tokens_).subspan(1),
                                                           .chunks = draft,
                                                           .logit_rows = stream_rows,
                                                           .observer = &recorder},
                                                          stream_rows));
    run.mtp_logits.assign(mtp.logits.begin(), mtp.logits.end());
  }
  if (draft_) {
    ASSIGN_OR_RETURN(run.rounds, RunDraftRounds(model, sequence, tokens_, *draft_, forced_rounds));
  }
  run.chosen = std::move(recorder.chosen);
  run.streams = std::move(recorder.streams);
  return run;
}

Result<std::vector<TokenId>> Verifier::RunGreedy() {
  ASSIGN_OR_RETURN(const std::vector<int64_t> prompt, golden_.Integers("greedy_prompt", 1));
  const int64_t count = golden_.Shape("greedy_output")[0];
  std::vector<TokenId> step_tokens;
  for (int64_t id : prompt) {
    if (id < 0 || id >= config().vocab_size)
      return InvalidArgument("golden greedy_prompt id {} is outside the vocabulary", id);
    step_tokens.push_back(static_cast<TokenId>(id));
  }
  if (step_tokens.empty()) return InvalidArgument("golden greedy_prompt is empty");
  ASSIGN_OR_RETURN(
      const ModelRun made,
      Prepare(tested_, {.numerics = Numerics::kClean, .max_step_rows = static_cast<int>(step_tokens.size())},
              std::ssize(prompt) + count));
  Model& model = *made.model;
  ASSIGN_OR_RETURN(SequenceState sequence, made.cache->NewSequence());
  std::vector<TokenId> generated;
  while (std::ssize(generated) < count) {
    const int rows = static_cast<int>(step_tokens.size());
    const SequenceChunk chunk[] = {{.sequence = &sequence, .num_rows = rows}};
    const int32_t last[] = {rows - 1};
    ASSIGN_OR_RETURN(const StepOutputs out,
                     model.Step({.tokens = step_tokens, .chunks = chunk, .logit_rows = last}));
    const auto best = std::max_element(out.logits.begin(), out.logits.end());
    generated.push_back(static_cast<TokenId>(best - out.logits.begin()));
    step_tokens = {generated.back()};
  }
  return generated;
}

Status Verifier::CompareTensor(const std::string& name, size_t rank, const std::vector<float>& got,
                               bool judged, bool is_ref, VerifyReport& report) {
  if (!golden_.Contains(name)) return Status();
  ASSIGN_OR_RETURN(const std::vector<float> want, golden_.Floats(name, rank));
  if (want.size() != got.size()) {
    return InvalidArgument("golden {}: {} has {} values, the model computes {}", name,
                           ShapeToString(golden_.Shape(name)), want.size(), got.size());
  }
  // A confidence logit is one product with much cancellation: its error is relative to all of them.
  const bool whole = name == "dspark.confidence_logits";
  TensorComparison c = Compare(name, got, want, whole ? std::ssize(want) : golden_.Shape(name).back());
  if (judged) {
    c.relative = !is_ref;
    c.tolerance = is_ref ? kRefLogitTolerance : kTableLogitTolerance;
    c.passed = (c.relative ? c.row_l2_max : c.max_abs) <= c.tolerance;
  }
  report.passed &= c.passed;
  report.tensors.push_back(std::move(c));
  return Status();
}

Status Verifier::CompareRounds(const DraftRounds& rounds, bool is_ref, VerifyReport& report) {
  RETURN_IF_ERROR(CompareTensor("dspark.hidden", 3, rounds.hidden, true, is_ref, report));
  RETURN_IF_ERROR(CompareTensor("dspark.base_logits", 3, rounds.base_logits, true, is_ref, report));
  RETURN_IF_ERROR(
      CompareTensor("dspark.confidence_logits", 2, rounds.confidence_logits, true, is_ref, report));
  RETURN_IF_ERROR(CompareTensor("dspark.corrected_logits", 3, rounds.corrected_logits, true, is_ref, report));
  if (!golden_.Contains("dspark.corrected_logits")) return Status();
  // A choice closer than the error may go either way.
  ASSIGN_OR_RETURN(const std::vector<float> want, golden_.Floats("dspark.corrected_logits", 3));
  const double error = report.tensors.back().max_abs;
  const int64_t v = config().vocab_size;
  report.draft_total = static_cast<int>(draft_->greedy_tokens.size());
  for (size_t i = 0; i < draft_->greedy_tokens.size(); ++i) {
    const int64_t token = draft_->greedy_tokens[i];
    double margin = INFINITY;
    for (int64_t id = 0; id < v; ++id) {
      if (id != token) margin = std::min<double>(margin, want[i * v + token] - want[i * v + id]);
    }
    if (margin < 2 * error) continue;
    ++report.draft_tokens;
    report.draft_equal += rounds.greedy_tokens[i] == token;
  }
  if (is_ref) report.passed &= report.draft_equal == report.draft_tokens;
  return Status();
}

Status Verifier::CompareRun(const PromptRun& run, bool is_ref, VerifyReport& report) {
  auto compare = [&](const std::string& name, size_t rank, const std::vector<float>& got, bool judged) {
    return CompareTensor(name, rank, got, judged, is_ref, report);
  };
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    RETURN_IF_ERROR(compare(fmt::format("layers.{}.streams", l), 3, run.streams[l], false));
    RETURN_IF_ERROR(compare(fmt::format("layers.{}.compressed", l), 2, run.compressed[l], false));
  }
  RETURN_IF_ERROR(compare("logits", 2, run.logits, true));
  if (draft_) RETURN_IF_ERROR(CompareRounds(run.rounds, is_ref, report));
  return compare("mtp_logits", 2, run.mtp_logits, true);
}

Status Verifier::CompareGreedy(double logit_error, bool is_ref, VerifyReport& report) {
  if (!golden_.Contains("greedy_output")) return Status();
  ASSIGN_OR_RETURN(const std::vector<int64_t> want, golden_.Integers("greedy_output", 1));
  ASSIGN_OR_RETURN(const std::vector<float> margin, golden_.Floats("greedy_margin", 1));
  if (margin.size() != want.size())
    return InvalidArgument("golden greedy_margin and greedy_output differ in length");
  ASSIGN_OR_RETURN(const std::vector<TokenId> got, RunGreedy());
  report.greedy_total = static_cast<int>(want.size());
  report.greedy_judged = is_ref;
  for (size_t i = 0; i < want.size() && margin[i] >= 2 * logit_error; ++i) {
    ++report.greedy_tokens;
    if (got[i] != want[i]) break;
    ++report.greedy_equal;
  }
  if (is_ref) report.passed &= report.greedy_equal == report.greedy_tokens;
  return Status();
}

SetComparison Verifier::CompareStageExperts(size_t stage, const DraftRounds& got,
                                            const DraftRounds& want) const {
  const size_t stages = weights_.dspark->stages.size();
  std::vector<int32_t> got_rows, want_rows;
  for (size_t i = stage; i < want.experts.size(); i += stages) {
    got_rows.insert(got_rows.end(), got.experts[i].begin(), got.experts[i].end());
    want_rows.insert(want_rows.end(), want.experts[i].begin(), want.experts[i].end());
  }
  return CompareSets(fmt::format("mtp.{}.experts", stage), got_rows, want_rows, config().num_experts_per_tok);
}

Result<VerifyReport> Verifier::Run() {
  RETURN_IF_ERROR(ReadGolden());
  const bool is_ref = &tested_.table == &RefKernels();
  VerifyReport report;
  report.table = tested_.table.name;
  // The one tensor that every oracle has: a run without would pass whatever the model computes.
  ASSIGN_OR_RETURN(const std::vector<float> logits, golden_.Floats("logits", 2));

  // What the table under test chooses by itself, and what it is held to.
  ASSIGN_OR_RETURN(const PromptRun own, RunPrompt(tested_, nullptr));
  if (is_ref) {
    RETURN_IF_ERROR(CompareRun(own, is_ref, report));
  } else {
    ASSIGN_OR_RETURN(const PromptRun ref, RunPrompt(reference_, &oracle_));
    Choices forced = oracle_;
    forced.experts = ref.chosen.experts;
    ASSIGN_OR_RETURN(const PromptRun injected, RunPrompt(tested_, &forced, &ref.rounds));
    RETURN_IF_ERROR(CompareRun(injected, is_ref, report));
    for (size_t l = 0; l < forced.experts.size(); ++l) {
      if (forced.experts[l].empty()) continue;
      report.sets.push_back(CompareSets(fmt::format("layers.{}.experts", l), own.chosen.experts[l],
                                        forced.experts[l], config().num_experts_per_tok));
    }
    for (size_t i = 0; draft_ && i < weights_.dspark->stages.size(); ++i) {
      report.sets.push_back(CompareStageExperts(i, own.rounds, ref.rounds));
    }
  }
  for (size_t l = 0; l < oracle_.picks.size(); ++l) {
    if (oracle_.picks[l].empty()) continue;
    SetComparison c = CompareSets(fmt::format("layers.{}.topk", l), own.chosen.picks[l], oracle_.picks[l],
                                  config().index_topk);
    c.judged = is_ref;
    if (is_ref) report.passed &= c.rows_different == 0;
    report.sets.push_back(std::move(c));
  }
  const double logit_error = Compare("logits", own.logits, logits, config().vocab_size).max_abs;
  RETURN_IF_ERROR(CompareGreedy(logit_error, is_ref, report));

  for (const std::string& name : golden_.Names()) {
    const bool known = name == "input_ids" || name == "positions" || name.starts_with("greedy_") ||
                       (draft_ && (name == "dspark.anchor_positions" || name == "dspark.greedy_tokens")) ||
                       name.ends_with(".topk") ||
                       std::any_of(report.tensors.begin(), report.tensors.end(),
                                   [&](const TensorComparison& c) { return c.name == name; });
    if (!known) report.not_compared.push_back(name);
  }
  return report;
}

// Leaves of a golden what an oracle would have computed for a shorter prompt: no position sees later ones.
Status Shorten(const ModelConfig& config, const VerifyExtent& extent, Golden& golden) {
  const int64_t positions = extent.positions;
  // Kept positions and anchors ascend.
  const auto rows_of = [&](const std::string& name) -> Result<int64_t> {
    if (!golden.Contains(name)) return int64_t{0};
    ASSIGN_OR_RETURN(const std::vector<int64_t> at, golden.Integers(name, 1));
    return std::lower_bound(at.begin(), at.end(), positions) - at.begin();
  };
  ASSIGN_OR_RETURN(const int64_t kept, rows_of("positions"));
  ASSIGN_OR_RETURN(const int64_t rounds, rows_of("dspark.anchor_positions"));
  golden.KeepRows("input_ids", positions);
  golden.KeepRows("positions", kept);
  golden.KeepRows("logits", positions);
  golden.KeepRows("mtp_logits", positions - 1);
  for (size_t l = 0; l < config.layers.size(); ++l) {
    golden.KeepRows(fmt::format("layers.{}.topk", l), positions);
    golden.KeepRows(fmt::format("layers.{}.streams", l), kept);
    if (config.layers[l] == LayerKind::kSwa) continue;
    golden.KeepRows(fmt::format("layers.{}.compressed", l), positions / static_cast<int>(config.layers[l]));
  }
  for (const std::string& name : golden.Names()) {
    if (name.starts_with("dspark.")) golden.KeepRows(name, rounds);
  }
  golden.KeepRows("greedy_output", extent.greedy_tokens);
  golden.KeepRows("greedy_margin", extent.greedy_tokens);
  return Status();
}

}  // namespace

Result<VerifyReport> VerifyGolden(const LoadedModel& model, const Backend& backend, ThreadPool& pool,
                                  const VerifyExtent& extent) {
  ASSIGN_OR_RETURN(Golden golden, Golden::Open(model.files));
  RETURN_IF_ERROR(Shorten(model.weights.config, extent, golden));
  const Place tested = {*backend.kernels, backend.device.get()};
  return Verifier(model.weights, tested, {RefKernels(), nullptr}, pool, std::move(golden)).Run();
}

}  // namespace foresight
