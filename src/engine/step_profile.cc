#include "engine/step_profile.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <set>
#include <vector>

#include "drafting/drafter.h"
#include "drawing/device_draws.h"
#include "drawing/token_draws.h"
#include "engine/engine_loop.h"
#include "foresight/request.h"

namespace foresight {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRepeats = 3;
// A device may record what comes again and again; steps of milliseconds don't get faster by it.
constexpr int kWarmUpsMax = 10;
constexpr double kWarmUpMs = 20;
// Sequences that steps are measured with. On a host more of them cost the same each. A device works on them
// side by side, and rows of one sequence share what those of several don't.
constexpr int kStatesMax = 32;
constexpr int kHostStatesMax = 8;
constexpr int kRowsOfAStateMax = 32;
constexpr int kProfiledRowsMax = 128;
constexpr int kTileRows = 64;
constexpr double kPositiveMs = 1e-4;  // what a table calls nothing
constexpr int64_t kShortContext = 64;
constexpr int64_t kFirstBucket = 512;  // tokens; each further one holds contexts up to eight times as long
constexpr int kHostSteps = 12;

class NoEvents : public EventSink {
 public:
  void OnOutput(const OutputEvent&) override {}
  void OnFinish(const RequestResult&) override {}
};

double MsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class Profiler {
 public:
  Profiler(Runtime& runtime, const ProfileOptions& options)
      : runtime_(runtime),
        options_(options),
        speculators_(runtime.config().vocab_size, kDraftPositionsMax, options.max_sequences, chance_,
                     runtime.pool()),
        draws_(runtime.model(), runtime.pool(), kStatesMax, kProfiledRowsMax, &speculators_, &chance_),
        on_device_(IsDrawnByDevice(SamplingParams(), runtime.device())) {
    for (int t = 0; t < runtime.pool().num_threads(); ++t) {
      samplers_.emplace_back(SamplingParams(), runtime.config().vocab_size);
    }
  }

  Result<StepCostTable> Run();

 private:
  // Brings the first state to `context` tokens, which the drafter sees as in serving, and makes the others
  // forks of it.
  Status MakeStates(int64_t context);
  // By rows, at the states' context.
  Result<std::vector<CostPoint>> VerifyMs(double seconds_max);
  Status ProfileVerification(StepCostTable* table);
  // The median of some measurements, behind what a device needs to record.
  template <typename Measure>
  Result<double> Median(Measure measure);
  // Of a plain step of one request, beside the model and its draw: what the step loop itself takes.
  Result<double> HostMs();
  TokenId NextToken() {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<TokenId>((random_ >> 33) % static_cast<uint64_t>(runtime_.config().vocab_size));
  }
  // Milliseconds of a step of `rows` rows, spread over `sequences` states, which are then as before; a token
  // drawn from each.
  Result<double> StepMs(int rows, int sequences);
  // A token from each row of the chunks, one after the other.
  Status DrawOnHost(const StepOutputs& outputs, std::span<const SequenceChunk> chunks);
  Status DrawOnDevice(const StepOutputs& outputs, std::span<const SequenceChunk> chunks);
  // Of the host, until a step of one row runs on a device that has been waited for.
  Result<double> LaunchMs();
  // Of the drafts of `sequences` states, after a step that gives them what they need.
  // Drafts of `depth` tokens each.
  Result<double> DraftMs(int sequences, int depth);

  Runtime& runtime_;
  const ProfileOptions options_;
  KeyedChance chance_;
  SpeculatorTeam speculators_;
  TokenDraws draws_;
  const bool on_device_;
  std::vector<Sampler> samplers_;  // by thread; at temperature 1: what a draw costs at most
  std::unique_ptr<Drafter> drafter_;
  int64_t context_ = 0;
  std::vector<TokenId> text_;          // what the first state is computed from
  std::vector<SequenceState> states_;  // all with context_ tokens
  uint64_t random_ = 1;
};

Status Profiler::MakeStates(int64_t context) {
  context_ = context;
  if (states_.empty()) {
    states_.reserve(kStatesMax);
    ASSIGN_OR_RETURN(SequenceState first, runtime_.cache().NewSequence());
    states_.push_back(std::move(first));
  }
  states_.erase(states_.begin() + 1, states_.end());
  SequenceState& state = states_.front();
  while (std::ssize(text_) < context + 1) text_.push_back(NextToken());
  drafter_->Begin(0, std::span(text_).first(state.length() + 1), std::ssize(text_));
  while (state.length() < context) {
    const int64_t rows = std::min<int64_t>(context - state.length(), options_.step_rows_max);
    const SequenceChunk chunk[] = {{.sequence = &state, .num_rows = static_cast<int>(rows)}};
    ASSIGN_OR_RETURN(
        [[maybe_unused]] const StepOutputs out,
        runtime_.model().Step(
            {.tokens = std::span(text_).subspan(state.length(), rows), .chunks = chunk, .logit_rows = {}}));
    const ObservedRows observed[] = {{.state = &state, .rows = static_cast<int>(rows), .tokens = text_}};
    RETURN_IF_ERROR(drafter_->Observe(observed));
  }
  drafter_->End(0);
  // Each writes to a block of its own.
  KvCache& cache = runtime_.cache();
  const int states_max = runtime_.device().is_host() ? kHostStatesMax : kStatesMax;
  const int64_t blocks = cache.BlocksFor(1) == 0 ? states_max : cache.AvailableBlocks() - 1;
  const int64_t count = std::clamp<int64_t>(blocks, 1, std::min(options_.max_sequences, states_max));
  while (std::ssize(states_) < count) {
    ASSIGN_OR_RETURN(SequenceState fork, states_.front().Fork());
    states_.push_back(std::move(fork));
  }
  return Status();
}

Result<double> Profiler::StepMs(int rows, int sequences) {
  std::vector<TokenId> tokens(rows);
  for (TokenId& t : tokens) t = NextToken();
  std::vector<int32_t> logit_rows(rows);
  for (int i = 0; i < rows; ++i) logit_rows[i] = i;
  std::vector<SequenceChunk> chunks;
  for (int s = 0; s < sequences; ++s) {
    const int share = rows / sequences + (s < rows % sequences ? 1 : 0);
    chunks.push_back({.sequence = &states_[s], .num_rows = share});
  }
  const Clock::time_point start = Clock::now();
  ASSIGN_OR_RETURN(
      const StepOutputs out,
      runtime_.model().Step(
          {.tokens = tokens, .chunks = chunks, .logit_rows = logit_rows, .keep_logits = on_device_}));
  RETURN_IF_ERROR(on_device_ ? DrawOnDevice(out, chunks) : DrawOnHost(out, chunks));
  const double ms = MsSince(start);
  for (const SequenceChunk& c : chunks) RETURN_IF_ERROR(c.sequence->Truncate(context_));
  return ms;
}

Result<double> Profiler::LaunchMs() {
  const TokenId tokens[] = {NextToken()};
  const int32_t logit_rows[] = {0};
  const SequenceChunk chunks[] = {{.sequence = &states_.front(), .num_rows = 1}};
  RETURN_IF_ERROR(runtime_.device().Synchronize());
  const Clock::time_point start = Clock::now();
  ASSIGN_OR_RETURN([[maybe_unused]] const StepOutputs out,
                   runtime_.model().Step(
                       {.tokens = tokens, .chunks = chunks, .logit_rows = logit_rows, .keep_logits = true}));
  const double ms = MsSince(start);
  RETURN_IF_ERROR(runtime_.device().Synchronize());
  RETURN_IF_ERROR(states_.front().Truncate(context_));
  return ms;
}

// Coupled drafts that were chosen: the device draws every row of them.
Status Profiler::DrawOnDevice(const StepOutputs& out, std::span<const SequenceChunk> chunks) {
  std::vector<DraftBlock> blocks;
  std::vector<DrawingSequence> sequences;
  blocks.reserve(chunks.size());
  for (const SequenceChunk& c : chunks) {
    blocks.emplace_back(SamplingParams(), AcceptanceRule::kCoupled, runtime_.config().vocab_size, c.num_rows,
                        DraftOptions{.on_device = true});
    blocks.back().Begin(context_);
    for (int k = 0; k + 1 < c.num_rows; ++k) blocks.back().AppendPoint(NextToken());
    sequences.push_back({.sampler = &samplers_.front(),
                         .block = &blocks.back(),
                         .position = context_,
                         .num_drafts = c.num_rows - 1});
  }
  return draws_.Begin(out, sequences);
}

Status Profiler::DrawOnHost(const StepOutputs& out, std::span<const SequenceChunk> chunks) {
  const int64_t vocab_size = runtime_.config().vocab_size;
  std::vector<int> first_rows;
  for (int row = 0; const SequenceChunk& c : chunks) {
    first_rows.push_back(row);
    row += c.num_rows;
  }
  std::vector<Status> errors(chunks.size());
  runtime_.pool().ParallelFor(std::ssize(chunks), [&](int64_t s, int thread) {
    for (int64_t row = first_rows[s]; row < first_rows[s] + chunks[s].num_rows; ++row) {
      const Result<SampledToken> token =
          samplers_[thread].Sample(out.logits.subspan(row * vocab_size, vocab_size), row);
      if (!token.ok()) errors[s] = token.status();
    }
  });
  for (const Status& error : errors) RETURN_IF_ERROR(error);
  return Status();
}

Result<double> Profiler::DraftMs(int sequences, int depth) {
  const int vocab_size = runtime_.config().vocab_size;
  std::vector<std::vector<TokenId>> tokens(sequences);
  std::vector<TokenId> step_tokens;
  std::vector<SequenceChunk> chunks;
  for (int s = 0; s < sequences; ++s) {
    for (int64_t i = 0; i <= context_ + 1; ++i) tokens[s].push_back(NextToken());
    step_tokens.push_back(tokens[s][context_]);
    chunks.push_back({.sequence = &states_[s], .num_rows = 1});
    drafter_->Begin(s, std::span(tokens[s]).first(context_ + 1), std::ssize(tokens[s]));
  }
  ASSIGN_OR_RETURN([[maybe_unused]] const StepOutputs out,
                   runtime_.model().Step({.tokens = step_tokens, .chunks = chunks, .logit_rows = {}}));
  std::vector<Sampler> samplers;
  std::vector<DraftBlock> blocks;
  std::vector<DraftRound> rounds;
  std::vector<ObservedRows> rows;
  const int gamma = drafter_->drafts_max();
  std::vector<DraftEvidence> evidence(static_cast<size_t>(sequences) * gamma);
  samplers.reserve(sequences);
  blocks.reserve(sequences);
  for (int s = 0; s < sequences; ++s) {
    samplers.emplace_back(SamplingParams(), vocab_size);
    blocks.emplace_back(SamplingParams(), AcceptanceRule::kRejection, vocab_size, gamma,
                        DraftOptions{.on_device = on_device_});
    blocks[s].Begin(std::ssize(tokens[s]));
    rows.push_back({.slot = s,
                    .state = &states_[s],
                    .first_row = s,
                    .rows = 1,
                    .tokens = tokens[s],
                    .drafts_next = true});
    rounds.push_back({.slot = s,
                      .state = &states_[s],
                      .tokens = tokens[s],
                      .sampler = &samplers[s],
                      .block = &blocks[s],
                      .depth = depth,
                      .depth_max = depth,
                      .evidence = std::span(evidence).subspan(static_cast<size_t>(s) * gamma, gamma)});
  }
  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(drafter_->Observe(rows));
  RETURN_IF_ERROR(drafter_->Propose(rounds));
  RETURN_IF_ERROR(runtime_.device().Synchronize());
  RETURN_IF_ERROR(drafter_->Settle());
  const double ms = MsSince(start);
  for (int s = 0; s < sequences; ++s) {
    drafter_->End(s);
    RETURN_IF_ERROR(states_[s].Truncate(context_));
  }
  return ms;
}

template <typename Measure>
Result<double> Profiler::Median(Measure measure) {
  double warm_up_ms = 0;
  for (int i = 0; i < kWarmUpsMax && warm_up_ms <= kWarmUpMs; ++i) {
    const int64_t unrecorded_runs = runtime_.device().unrecorded_runs();
    ASSIGN_OR_RETURN(const double measured, measure());
    warm_up_ms += measured;
    if (runtime_.device().unrecorded_runs() == unrecorded_runs) break;
  }
  std::array<double, kRepeats> ms;
  for (double& measured : ms) {
    ASSIGN_OR_RETURN(measured, measure());
  }
  return std::max(MedianMs(ms), kPositiveMs);
}

Result<std::vector<CostPoint>> Profiler::VerifyMs(double seconds_max) {
  std::vector<CostPoint> points;
  const Clock::time_point start = Clock::now();
  const int states = static_cast<int>(states_.size());
  // Each by half more than the last. A device computes products in tiles of so many rows: where a tile ends
  // the next row costs more than others.
  const auto next_count = [&](int rows) {
    const int next = rows < 4 ? rows + 1 : rows + rows / 2;
    if (runtime_.device().is_host()) return next;
    if (rows % kTileRows == 0) return rows + 1;
    const int tile_end = (rows + kTileRows - 1) / kTileRows * kTileRows;
    return next >= tile_end - kTileRows / 8 ? tile_end : next;
  };
  // Up to the slack of the rings in a state, and no further than the limits of a step.
  const int64_t room = runtime_.context_tokens() - context_;
  const int rows_max = std::min({options_.step_rows_max, kProfiledRowsMax,
                                 states * static_cast<int>(std::min<int64_t>(room, kRowsOfAStateMax))});
  for (int rows = 1; rows <= rows_max; rows = next_count(rows)) {
    const int sequences = std::min(states, rows);
    ASSIGN_OR_RETURN(const double ms, Median([&] { return StepMs(rows, sequences); }));
    points.push_back({.count = rows, .ms = ms});
    const double spent = MsSince(start) * 1e-3;
    if (points.size() >= 3 && spent + 2 * (kRepeats + 1) * ms * 1e-3 > seconds_max) break;
  }
  // Of the rows behind it a tile's first one says nothing.
  if (points.size() > 1 && points.back().count % kTileRows == 1) points.pop_back();
  // Where a step holds one row, nothing is ever verified beside it.
  if (points.size() == 1) points.push_back({.count = 2, .ms = 2 * points.front().ms});
  // In steps of microseconds, or on a busy machine, noise can hide what rows cost; by a table that is flat
  // every draft would be free.
  if (points.back().ms <= points.front().ms) {
    for (const CostPoint& point : points) points.back().ms = std::max(points.back().ms, 1.01 * point.ms);
  }
  return points;
}

// A bucket is measured in its middle. The last one stands for all that are longer.
Status Profiler::ProfileVerification(StepCostTable* table) {
  const int64_t longest = runtime_.context_tokens();
  const Clock::time_point start = Clock::now();
  int64_t end = options_.is_thorough ? std::min(kFirstBucket, longest) : longest;
  int64_t context = std::min(kShortContext, longest / 2);
  for (;;) {
    RETURN_IF_ERROR(MakeStates(context));
    ASSIGN_OR_RETURN(table->verify_ms[end],
                     VerifyMs(options_.is_thorough ? options_.seconds_max / 4 : options_.seconds_max));
    if (end == longest) return Status();
    end = end > longest / 8 ? longest : end * 8;
    context = end / 2;
    const CostPoint& most = table->verify_ms.rbegin()->second.back();
    const double prefill_ms = static_cast<double>(context - context_) * most.ms / most.count;
    if (MsSince(start) + prefill_ms > options_.seconds_max * 1e3) return Status();
  }
}

Result<double> Profiler::HostMs() {
  states_.clear();
  const int64_t context = runtime_.context_tokens();
  QueueGauge queue;
  EngineLoop loop(runtime_,
                  {.max_sequences = 1, .step_rows_max = options_.step_rows_max, .kept_prefixes_max = 0},
                  /*speculation=*/nullptr, queue, [] { return MsSince({}) * 1e-3; });
  const auto ticket = std::make_shared<Ticket>();
  ticket->request = {.prompt = {NextToken()}, .ignore_eos = true};
  ticket->request.sampling.max_tokens = std::clamp<int64_t>(context - 1, 1, kHostSteps);
  ticket->sink = std::make_shared<NoEvents>();
  queue.requests = 1;
  queue.tokens = 1;
  loop.Add(ticket);
  std::vector<double> ms;
  for (double before = 0; loop.Step();) {
    const double seconds = loop.statistics().host_seconds;
    ms.push_back((seconds - before) * 1e3);
    before = seconds;
  }
  return MedianMs(ms);
}

Result<StepCostTable> Profiler::Run() {
  ASSIGN_OR_RETURN(drafter_, MakeDrafter(runtime_.draft_method(), runtime_.drafts_max(),
                                         options_.max_sequences, runtime_.model(), speculators_));
  StepCostTable table;
  table.drafts_max = drafter_->drafts_max();
  table.model = runtime_.models_name();
  table.build = runtime_.build_name();
  table.device = runtime_.device_name();
  RETURN_IF_ERROR(ProfileVerification(&table));
  for (int count = 1; count <= std::ssize(states_); count *= 2) {
    ASSIGN_OR_RETURN(const double ms, Median([&] { return DraftMs(count, table.drafts_max); }));
    table.draft_ms.push_back({.count = count, .ms = ms});
  }
  if (table.drafts_max == 1) {
    table.draft_first_ms = table.draft_ms;
  } else {
    // The ends of it will do.
    for (const int count : std::set{1, table.draft_ms.back().count}) {
      ASSIGN_OR_RETURN(const double ms, Median([&] { return DraftMs(count, /*depth=*/1); }));
      table.draft_first_ms.push_back({.count = count, .ms = ms});
    }
  }
  if (on_device_ && drafter_->has_confidences()) {
    ASSIGN_OR_RETURN(table.wait_ms, Median([&] { return LaunchMs(); }));
  }
  // If it isn't measured: a small part.
  table.host_ms = 0.02 * table.verify_ms.begin()->second.front().ms;
  if (options_.is_thorough) {
    ASSIGN_OR_RETURN(table.host_ms, HostMs());
  }
  return table;
}

}  // namespace

Result<StepCostTable> ProfileSteps(Runtime& runtime, const ProfileOptions& options) {
  return Profiler(runtime, options).Run();
}

}  // namespace foresight
