#include "engine/engine_loop.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

namespace foresight {
namespace {

// Guesses until something was measured.
constexpr double kTokenSeconds = 1e-3;
constexpr double kCopyBytesPerSecond = 2e9;
// Steps of fewer rows say little about the cost of prefill.
constexpr int64_t kMeasuredRowsMin = 32;
constexpr double kAverageWeight = 0.2;  // of a new measurement

SchedulerOptions SchedulerOptionsOf(const Runtime& runtime, const EngineOptions& options,
                                    const Speculation* speculation) {
  return {.max_sequences = options.max_sequences,
          .step_rows_max = runtime.step_rows_max(),
          .mixed_prefill_rows_max = runtime.mixed_prefill_rows_max(),
          .draft_rows_max = speculation == nullptr ? 0 : speculation->drafter().drafts_max()};
}

void MoveTowards(double& average, double measured) {
  average += kAverageWeight * (measured - average);
}

int64_t BorderBefore(int64_t tokens) {
  return tokens / kBlockTokens * kBlockTokens;
}

}  // namespace

EngineLoop::EngineLoop(Runtime& runtime, const EngineOptions& options,
                       std::unique_ptr<Speculation> speculation, QueueGauge& queue, Clock clock)
    : runtime_(runtime),
      options_(options),
      queue_(queue),
      clock_(std::move(clock)),
      speculation_(std::move(speculation)),
      lag_(speculation_ == nullptr ? 0 : speculation_->drafter().lag()),
      draws_(runtime.model(), runtime.pool(), options.max_sequences, runtime.step_rows_max(),
             speculation_ == nullptr ? nullptr : &speculation_->speculators(),
             speculation_ == nullptr ? nullptr : &speculation_->chance()),
      prefixes_(runtime.cache(), options.kept_prefixes_max),
      scheduler_(SchedulerOptionsOf(runtime, options, speculation_.get()), *this),
      preemption_costs_{.token_seconds = kTokenSeconds,
                        .bytes_per_second = kCopyBytesPerSecond,
                        .saved_bytes_max = options.saved_bytes_max},
      no_drafts_(options.max_sequences, 0) {
  step_tokens_.reserve(runtime.step_rows_max());
  step_placed_.reserve(runtime.step_rows_max());
  step_chunks_.reserve(options.max_sequences);
  step_logit_rows_.reserve(runtime.step_rows_max());
  step_drafts_.reserve(options.max_sequences);
  candidates_.reserve(options.max_sequences);
  drawing_.reserve(options.max_sequences);
  observed_.reserve(options.max_sequences);
  event_tokens_.reserve(kDraftPositionsMax + 1);
}

EngineLoop::~EngineLoop() {
  CancelAll();
}

void EngineLoop::Add(std::shared_ptr<Ticket> ticket) {
  const Request& request = ticket->request;
  const int64_t prompt = std::ssize(request.prompt);
  auto sequence = std::make_unique<Sequence>();
  const int64_t room = runtime_.context_tokens() - prompt;
  sequence->tokens_max = prompt + std::min(request.sampling.max_tokens.value_or(room), room);
  sequence->salt = XXH3_64bits(request.cache_salt.data(), request.cache_salt.size());
  sequence->prompt_border = BorderBefore(prompt - 1);
  sequence->result.prompt_tokens = prompt;
  sequence->tokens = request.prompt;
  const SequenceHandle handle = scheduler_.Add(prompt, request.priority, ticket->submitted);
  sequence->ticket = std::move(ticket);
  if (handle == std::ssize(sequences_)) sequences_.emplace_back();
  sequences_[handle] = std::move(sequence);
}

// --- memory

bool EngineLoop::FreeBlocks(int64_t blocks, int keep) {
  KvCache& cache = runtime_.cache();
  if (blocks > cache.AvailableBlocks() &&
      blocks > cache.AvailableBlocks() + prefixes_.EvictableBlocks(keep)) {
    return false;
  }
  while (blocks > cache.AvailableBlocks()) CHECK(prefixes_.EvictOne(keep));
  return true;
}

bool EngineLoop::Admit(SequenceHandle handle, int64_t headroom, Admission* admission) {
  Sequence& s = *sequences_[handle];
  if (runtime_.cache().BlocksFor(1) == 0)
    headroom = 0;  // every layer is SWA: there are no blocks to keep free
  if (!s.saved.bytes.empty() ? !AdmitSaved(s, headroom) : !AdmitByPrefix(s, headroom)) return false;
  if (!s.began()) Begin(s);
  if (speculation_ != nullptr) speculation_->Begin(s);
  admission->computed = s.state->length();
  // States are kept at the last border of what is known, and where other prompts went another way: the next
  // one that begins the same finds it. A border so near the end that truncation reaches it needs no stop.
  if (s.request().keep_in_cache && options_.kept_prefixes_max > 0) {
    s.shared_tokens = prefixes_.CommonTokens(s.salt, s.before_last());
    const int64_t border = BorderBefore(s.known() - 1);
    const int64_t slack = runtime_.cache().layout().slack_tokens;
    if (s.shared_tokens > admission->computed) admission->stops[0] = s.shared_tokens;
    if (border > admission->computed && s.known() - border > slack / 2) admission->stops[1] = border;
    s.kept_tokens = BorderBefore(admission->computed);
  }
  // An answer that is computed anew goes on as if it had not been: with drafts behind its last token.
  if (speculation_ != nullptr && s.result.completion_tokens > 0 && admission->computed < s.known() - 1) {
    admission->stops = {admission->stops[1], s.known() - 1};
  }
  return true;
}

bool EngineLoop::AdmitSaved(Sequence& s, int64_t headroom) {
  KvCache& cache = runtime_.cache();
  if (!FreeBlocks(cache.BlocksFor(s.known() + 1) + headroom)) return false;
  const double start = clock_();
  Result<SequenceState> state = cache.NewSequence();
  CHECK(state.ok(), "{}", state.status().message());
  const Status restored = state->Restore(s.saved);
  CHECK(restored.ok(), "a state that was saved in memory: {}", restored.message());
  const int64_t bytes = std::ssize(s.saved.bytes);
  MoveTowards(preemption_costs_.bytes_per_second,
              static_cast<double>(bytes) / std::max(clock_() - start, 1e-9));
  totals_.saved_bytes -= bytes;
  ++totals_.restored;
  s.saved = {};
  s.state.emplace(std::move(*state));
  return true;
}

bool EngineLoop::AdmitByPrefix(Sequence& s, int64_t headroom) {
  KvCache& cache = runtime_.cache();
  const int64_t wanted = cache.BlocksFor(s.known() + 1) + headroom;
  int prefix = s.request().read_cache ? prefixes_.Find(s.salt, s.before_last()) : PrefixCache::kNone;
  // With a lag the prefix's last block is written again, by a copy.
  const int64_t copies = lag_ > 0 ? cache.BlocksFor(1) : 0;
  if (prefix != PrefixCache::kNone &&
      !FreeBlocks(wanted - cache.BlocksFor(prefixes_.tokens(prefix)) + copies, prefix)) {
    prefix = PrefixCache::kNone;  // all of what is kept has to go
  }
  if (prefix == PrefixCache::kNone && !FreeBlocks(wanted)) return false;
  Result<SequenceState> state = prefix == PrefixCache::kNone ? cache.NewSequence() : prefixes_.Fork(prefix);
  CHECK(state.ok(), "{}", state.status().message());
  if (prefix != PrefixCache::kNone && lag_ > 0) {
    const Status cut = state->Truncate(state->length() - lag_);
    CHECK(cut.ok(), "{}", cut.message());
  }
  if (!s.began()) s.result.cached_tokens = state->length();
  s.state.emplace(std::move(*state));
  return true;
}

void EngineLoop::Begin(Sequence& s) {
  const int vocab_size = runtime_.config().vocab_size;
  s.tokens.reserve(s.tokens_max);
  s.sampler.emplace(s.sampling(), vocab_size, s.request().choice);
  s.sampler->AddPrompt(s.request().prompt);
  s.text.emplace(runtime_.tokenizer(), s.sampling());
  s.result.seed = s.sampler->seed();
  s.admitted = now_;
  s.result.queue_seconds = now_ - s.ticket->submitted;
  totals_.prompt_tokens += s.result.prompt_tokens;
  totals_.cached_tokens += s.result.cached_tokens;
  queue_.requests.fetch_sub(1);
  queue_.tokens.fetch_sub(s.result.prompt_tokens);
}

bool EngineLoop::Reserve(SequenceHandle handle, int rows) {
  return ReserveRows(*sequences_[handle], rows);
}

bool EngineLoop::ReserveRows(Sequence& s, int rows) {
  while (!s.state->Reserve(rows).ok()) {
    if (!prefixes_.EvictOne()) return false;
  }
  return true;
}

void EngineLoop::Preempt(SequenceHandle handle) {
  Sequence& s = *sequences_[handle];
  const int64_t bytes = s.state->SavedBytes();
  if (IsWorthSaving(s.state->length(), bytes, totals_.saved_bytes, preemption_costs_)) {
    s.saved = s.state->Save();
    totals_.saved_bytes += bytes;
  }
  if (speculation_ != nullptr) speculation_->End(s);
  s.state.reset();
  ++s.result.preemptions;
  ++totals_.preempted;
}

// A fork at the last border that the state has passed, if later prompts may go on from there.
void EngineLoop::KeepPrefix(Sequence& s) {
  const int64_t border = BorderBefore(s.state->length());
  if (!s.request().keep_in_cache || border <= s.kept_tokens) return;
  s.kept_tokens = border;
  if (border < s.prompt_border && border != s.shared_tokens) return;
  const std::span<const TokenId> tokens(s.tokens.data(), static_cast<size_t>(border));
  if (s.state->truncatable_to() > border - lag_ || prefixes_.Contains(s.salt, tokens) ||
      !prefixes_.MakeRoom())
    return;
  Result<SequenceState> fork = s.state->Fork();
  CHECK(fork.ok(), "{}", fork.status().message());
  const Status cut = fork->Truncate(border);
  CHECK(cut.ok(), "{}", cut.message());
  prefixes_.Insert(s.salt, tokens, std::move(*fork));
}

// --- steps

bool EngineLoop::Step() {
  now_ = clock_();
  EndCancelledAndLate();
  const std::span<const ScheduledRows> plan = scheduler_.Plan();
  if (plan.empty()) return false;
  ++totals_.steps;
  const double begin = now_;
  const int64_t unrecorded_runs = runtime_.device().unrecorded_runs();
  const double draft_begin = clock_();
  const Result<std::span<const int>> lengths = Draft(plan);
  if (!lengths.ok()) {
    FailAll(plan, lengths.status());
    return true;
  }
  BuildStep(plan, *lengths);
  const double model_begin = clock_();
  const Result<StepOutputs> out = runtime_.model().Step({.tokens = step_tokens_,
                                                         .chunks = step_chunks_,
                                                         .logit_rows = step_logit_rows_,
                                                         .keep_logits = true,
                                                         .placed = step_placed_,
                                                         .plan = step_plan_});
  const Status computed = out.ok() ? BeginDraws(plan, *out, *lengths) : out.status();
  now_ = clock_();
  if (!computed.ok()) {
    if (speculation_ != nullptr) speculation_->EndStep(std::nullopt);
    FailAll(plan, computed);
    return true;
  }
  const double model_seconds = now_ - model_begin;
  const int64_t rows = std::ssize(step_tokens_) + step_plan_.count;
  totals_.rows += rows;
  if (rows >= kMeasuredRowsMin) {
    MoveTowards(preemption_costs_.token_seconds, model_seconds / static_cast<double>(rows));
  }
  Accept(plan);
  const double observe_begin = clock_();  // what was drawn counts as the rows' cost: there is a draw for each
  const Status observed = speculation_ == nullptr ? Status() : speculation_->Observe(observed_);
  const double observe_end = clock_();
  const bool all_decode =
      std::all_of(plan.begin(), plan.end(), [](const ScheduledRows& r) { return r.is_decode; });
  int64_t context = 0;
  for (const DraftCandidate& c : candidates_) context += c.sequence->known();
  if (observed.ok()) {
    KeepAndFinish(plan);
  } else {
    FailAll(plan, observed);
  }
  const double draft_seconds = model_begin - draft_begin + observe_end - observe_begin;
  const double draw_seconds = observe_begin - now_;
  const double end = clock_();
  const double host_seconds = end - begin - draft_seconds - model_seconds - draw_seconds;
  totals_.model_seconds += model_seconds;
  totals_.draft_seconds += draft_seconds;
  totals_.draw_seconds += draw_seconds;
  totals_.host_seconds += host_seconds;
  if (speculation_ == nullptr) return true;
  speculation_->EndStep(StepTimes{.draft_requests = speculation_->num_drafting(),
                                  .draft_tokens = speculation_->longest_draft(),
                                  .rows = static_cast<int>(rows),
                                  .context_tokens = context / std::ssize(plan),
                                  .draft_ms = draft_seconds * 1e3,
                                  .verify_ms = (model_seconds + draw_seconds) * 1e3,
                                  .host_ms = host_seconds * 1e3,
                                  .draft_is_apart = !speculation_->has_late_drafts(),
                                  .has_prompts = !all_decode,
                                  .is_warm_up = runtime_.device().unrecorded_runs() > unrecorded_runs});
  totals_.host_seconds += clock_() - end;
  return true;
}

Result<std::span<const int>> EngineLoop::Draft(std::span<const ScheduledRows> plan) {
  candidates_.clear();
  int rows = 0;
  for (const ScheduledRows& r : plan) {
    rows += r.rows;
    if (r.is_last) candidates_.push_back({.sequence = &*sequences_[r.sequence], .decodes = r.is_decode});
  }
  if (speculation_ == nullptr) return std::span<const int>(no_drafts_).first(candidates_.size());
  return speculation_->Draft(candidates_, rows - static_cast<int>(candidates_.size()),
                             [this](Sequence& s, int wanted) { return ReserveRows(s, wanted); });
}

void EngineLoop::BuildStep(std::span<const ScheduledRows> plan, std::span<const int> lengths) {
  step_tokens_.clear();
  step_placed_.clear();
  step_chunks_.clear();
  step_logit_rows_.clear();
  step_drafts_.clear();
  step_plan_ = {};
  const bool is_planned = speculation_ != nullptr && speculation_->plan().count > 0;
  int candidate = 0;
  for (const ScheduledRows& r : plan) {
    Sequence& s = *sequences_[r.sequence];
    const auto first = s.tokens.begin() + s.state->length();
    step_tokens_.insert(step_tokens_.end(), first, first + r.rows);
    int rows = r.rows;
    if (r.is_last) {
      step_logit_rows_.push_back(static_cast<int32_t>(step_tokens_.size()) - 1);
      if (is_planned) step_drafts_.push_back(speculation_->plan().chunks[candidate]);
      const int drafts = is_planned ? 0 : lengths[candidate];
      ++candidate;
      for (int k = 0; k < drafts; ++k) {
        const auto row = static_cast<int32_t>(step_tokens_.size());
        const TokenId* const pending = s.block->pending(k);
        if (pending != nullptr) step_placed_.push_back({.token = pending, .row = row});
        step_logit_rows_.push_back(row);
        step_tokens_.push_back(pending != nullptr ? 0 : s.block->tokens()[k]);
      }
      rows += drafts;
    } else if (is_planned) {
      step_drafts_.emplace_back();
    }
    step_chunks_.push_back({.sequence = &*s.state, .num_rows = rows});
  }
  if (is_planned) step_plan_ = {.count = speculation_->plan().count, .chunks = step_drafts_};
}

// The device computes the step meanwhile, and is done when this returns.
Status EngineLoop::BeginDraws(std::span<const ScheduledRows> plan, const StepOutputs& outputs,
                              std::span<const int> lengths) {
  drawing_.clear();
  for (size_t i = 0; i < candidates_.size(); ++i) {
    Sequence& s = *candidates_[i].sequence;
    drawing_.push_back({.sampler = &*s.sampler,
                        .block = speculation_ == nullptr ? nullptr : &*s.block,
                        .position = s.known(),
                        .num_drafts = lengths[i]});
  }
  RETURN_IF_ERROR(draws_.Begin(outputs, drawing_, step_plan_.count));
  if (speculation_ == nullptr) return Status();
  RETURN_IF_ERROR(speculation_->Settle(draws_.verified()));
  if (step_plan_.count > 0) FollowPlan(plan, speculation_->lengths());
  return Status();
}

void EngineLoop::FollowPlan(std::span<const ScheduledRows> plan, std::span<const int> lengths) {
  int candidate = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (!plan[i].is_last) continue;
    const int drafts = lengths[candidate++];
    step_chunks_[i].num_rows += drafts;
    step_chunks_[i].sequence->Advance(drafts);
  }
}

void EngineLoop::Accept(std::span<const ScheduledRows> plan) {
  observed_.clear();
  draws_.DrawOnHost();
  int candidate = 0;
  int row = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    Sequence& s = *sequences_[plan[i].sequence];
    const int rows = step_chunks_[i].num_rows;
    const int64_t before = s.state->length() - rows;
    if (plan[i].is_last) {
      const Result<VerifiedTokens> drawn = draws_.Take(candidate);
      if (drawn.ok()) {
        if (speculation_ != nullptr) speculation_->Judged(candidate, drawn->accepted);
        Extend(s, *drawn);
      } else {
        s.ending = FinishReason::kError;
        s.result.status = drawn.status();
      }
      ++candidate;
      // Rejected drafts go, and accepted ones behind a stop.
      const Status cut = s.state->Truncate(std::min(s.state->length(), s.known() - 1));
      CHECK(cut.ok(), "{}", cut.message());
    }
    observed_.push_back({.slot = s.slot,
                         .state = &*s.state,
                         .first_row = row,
                         .rows = static_cast<int>(s.state->length() - before),
                         .tokens = s.tokens,
                         .drafts_next = plan[i].is_last && !s.ending});
    row += rows;
  }
}

void EngineLoop::Extend(Sequence& s, const VerifiedTokens& drawn) {
  if (s.result.completion_tokens == 0) {
    s.first_token = now_;
    s.result.prefill_seconds = now_ - s.admitted;
  }
  s.result.decode_seconds = now_ - s.first_token;
  event_tokens_.clear();
  event_text_.clear();
  for (const SampledToken& token : drawn.tokens) {
    s.tokens.push_back(token.token);
    s.sampler->AddGenerated(token.token);
    ++s.result.completion_tokens;
    ++totals_.generated_tokens;
    event_tokens_.push_back({.token = token.token, .logprob = token.logprob, .top = token.top});
    if (token.token == runtime_.config().eos_token_id && !s.request().ignore_eos) {
      s.ending = FinishReason::kStop;
      break;
    }
    if (Status pushed = s.text->Push(token.token, event_text_); !pushed.ok()) {
      s.ending = FinishReason::kError;
      s.result.status = std::move(pushed);
      break;
    }
    if (s.text->stopped()) {
      s.ending = FinishReason::kStop;
      s.result.stop_string = s.text->stopped_by();
      break;
    }
    if (s.known() == s.tokens_max) {
      s.ending = FinishReason::kLength;
      break;
    }
  }
  s.result.drafted_tokens += std::min<int64_t>(drawn.accepted, std::ssize(event_tokens_));
  s.ticket->sink->OnOutput({.tokens = event_tokens_, .text = event_text_});
}

void EngineLoop::KeepAndFinish(std::span<const ScheduledRows> plan) {
  for (const ScheduledRows& r : plan) {
    Sequence& s = *sequences_[r.sequence];
    KeepPrefix(s);
    if (s.ending) {
      Finish(r.sequence, *s.ending, s.result.status);
    } else {
      scheduler_.Update(r.sequence, s.state->length(), s.known());
    }
  }
}

void EngineLoop::FailAll(std::span<const ScheduledRows> plan, const Status& status) {
  for (const ScheduledRows& r : plan) Finish(r.sequence, FinishReason::kError, status);
}

// --- ends

void EngineLoop::EndCancelledAndLate() {
  for (SequenceHandle handle = 0; handle < std::ssize(sequences_); ++handle) {
    if (sequences_[handle] == nullptr) continue;
    const Ticket& ticket = *sequences_[handle]->ticket;
    if (ticket.cancelled.load(std::memory_order_relaxed)) {
      Finish(handle, FinishReason::kCancelled);
    } else if (ticket.request.timeout_seconds > 0 &&
               now_ - ticket.submitted > ticket.request.timeout_seconds) {
      if (sequences_[handle]->result.completion_tokens > 0) {
        Finish(handle, FinishReason::kDeadline);
      } else {
        Finish(handle, FinishReason::kError,
               Error(StatusCode::kDeadlineExceeded, "no token within {} seconds",
                     ticket.request.timeout_seconds));
      }
    }
  }
}

void EngineLoop::CancelAll() {
  for (SequenceHandle handle = 0; handle < std::ssize(sequences_); ++handle) {
    if (sequences_[handle] != nullptr) Finish(handle, FinishReason::kCancelled);
  }
}

void EngineLoop::Finish(SequenceHandle handle, FinishReason reason, Status status) {
  const std::unique_ptr<Sequence> s = std::move(sequences_[handle]);
  scheduler_.Remove(handle);
  totals_.saved_bytes -= std::ssize(s->saved.bytes);
  ++totals_.finished;
  if (!s->began()) {
    queue_.requests.fetch_sub(1);
    queue_.tokens.fetch_sub(s->result.prompt_tokens);
  }
  if (s->text) {
    event_text_.clear();
    s->text->Finish(event_text_);
    if (!event_text_.empty()) s->ticket->sink->OnOutput({.tokens = {}, .text = event_text_});
  }
  if (s->state && speculation_ != nullptr) {
    s->result.plain_step_seconds = speculation_->PlainStepSeconds(s->known());
    speculation_->End(*s);
  }
  totals_.drafts.Add(s->result.drafts);
  s->state.reset();
  s->result.finish = reason;
  s->result.status = std::move(status);
  finished_.push_back(s->ticket->number);
  s->ticket->sink->OnFinish(s->result);
}

void EngineLoop::TakeFinished(std::vector<RequestNumber>& out) {
  out.clear();
  out.swap(finished_);
}

EngineStatistics EngineLoop::statistics() const {
  EngineStatistics statistics = totals_;
  const CacheStats cache = runtime_.cache().stats();
  statistics.waiting = scheduler_.waiting();
  statistics.running = scheduler_.running();
  statistics.kept_prefixes = prefixes_.stats().prefixes;
  statistics.cache_bytes = cache.total_bytes;
  statistics.cache_bytes_peak = cache.resident_bytes;
  return statistics;
}

}  // namespace foresight
