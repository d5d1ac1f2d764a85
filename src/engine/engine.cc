#include "foresight/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/text_file.h"
#include "engine/engine_access.h"
#include "engine/engine_loop.h"
#include "engine/step_profile.h"
#include "request/validate.h"

namespace foresight {
namespace {

constexpr std::chrono::milliseconds kCancelPoll{5};
constexpr int kSequencesMax = 4096;
constexpr int kThreadsMax = 1024;

double SecondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Result<StepCostTable> CostsOf(Runtime& runtime, const EngineOptions& options) {
  const std::string& path = options.speculation.step_costs_file;
  if (path.empty()) {
    return ProfileSteps(runtime,
                        {.max_sequences = options.max_sequences, .step_rows_max = runtime.step_rows_max()});
  }
  ASSIGN_OR_RETURN(const std::string json, ReadTextFile(path));
  Result<StepCostTable> table = ParseStepCosts(json);
  if (!table.ok()) return table.status().WithContext(path);
  return table;
}

// Null when nothing drafts.
Result<std::unique_ptr<Speculation>> MakeSpeculation(Runtime& runtime, const EngineOptions& options) {
  if (runtime.draft_method() == DraftMethod::kNone) {
    const SpeculationOptions& s = options.speculation;
    if (s.calibration_file.empty() && s.step_costs_file.empty()) return std::unique_ptr<Speculation>();
    return InvalidArgument("{}: nothing drafts that it could be for",
                           s.calibration_file.empty() ? s.step_costs_file : s.calibration_file);
  }
  ASSIGN_OR_RETURN(const StepCostTable costs, CostsOf(runtime, options));
  ASSIGN_OR_RETURN(const std::optional<CalibrationTable> calibration, CalibrationOf(runtime, options));
  ASSIGN_OR_RETURN(
      std::unique_ptr<Speculation> speculation,
      Speculation::Create(options.speculation, runtime,
                          {.max_sequences = options.max_sequences, .step_rows_max = runtime.step_rows_max()},
                          costs, calibration));
  const Status fits =
      CheckStepCosts(costs, runtime.models_name(), runtime.build_name(), speculation->drafter().drafts_max());
  if (!fits.ok()) return fits.WithContext(options.speculation.step_costs_file);
  return speculation;
}

}  // namespace

Status CheckEngineOptions(const EngineOptions& o) {
  if (o.max_sequences < 1 || o.max_sequences > kSequencesMax) {
    return InvalidArgument("max_sequences: want 1..{}, got {}", kSequencesMax, o.max_sequences);
  }
  if (o.num_threads < 0 || o.num_threads > kThreadsMax) {
    return InvalidArgument("num_threads: want 0..{}, got {}", kThreadsMax, o.num_threads);
  }
  if (o.step_rows_max != 0 && o.step_rows_max < o.max_sequences) {
    return InvalidArgument("step_rows_max: want 0 or a row for each of {} sequences, got {}", o.max_sequences,
                           o.step_rows_max);
  }
  if (o.mixed_prefill_rows_max < 0) {
    return InvalidArgument("mixed_prefill_rows_max: want 0 or more, got {}", o.mixed_prefill_rows_max);
  }
  if (o.kept_prefixes_max < 0 || o.kept_prefixes_max > kSequencesMax) {
    return InvalidArgument("kept_prefixes_max: want 0..{}, got {}", kSequencesMax, o.kept_prefixes_max);
  }
  if (o.saved_bytes_max < 0)
    return InvalidArgument("saved_bytes_max: want 0 or more, got {}", o.saved_bytes_max);
  if (o.queued_requests_max < 1 || o.queued_tokens_max < 1) {
    return InvalidArgument("the queue: want room for a request and a token, got {} and {}",
                           o.queued_requests_max, o.queued_tokens_max);
  }
  if (o.context_tokens < 0 || o.cache_bytes_max < 0) {
    return InvalidArgument("context_tokens and cache_bytes_max: want 0 or more, got {} and {}",
                           o.context_tokens, o.cache_bytes_max);
  }
  const SpeculationOptions& s = o.speculation;
  if (s.drafts_max < 0 || s.drafts_max > kDraftPositionsMax) {
    return InvalidArgument("drafts_max: want 0..{}, got {}", kDraftPositionsMax, s.drafts_max);
  }
  return ParsePlanner(s.planner).status();
}

Result<std::optional<CalibrationTable>> CalibrationOf(const Runtime& runtime, const EngineOptions& options) {
  std::string where = options.speculation.calibration_file;
  std::string json;
  if (!where.empty()) {
    ASSIGN_OR_RETURN(json, ReadTextFile(where));
  } else if (runtime.draft_files().Contains(kCalibrationFileName)) {
    ASSIGN_OR_RETURN(json, runtime.draft_files().FindText(kCalibrationFileName));
    where = runtime.draft_files().origin() + ": " + std::string(kCalibrationFileName);
  } else {
    return std::optional<CalibrationTable>();
  }
  Result<CalibrationTable> table = ParseCalibration(json);
  if (!table.ok()) return table.status().WithContext(where);
  // The head's own is for the length that it was made for; another length drafts without.
  if (options.speculation.calibration_file.empty() && options.speculation.drafts_max > 0 &&
      runtime.drafts_max() != table->drafts_max) {
    return std::optional<CalibrationTable>();
  }
  // Speculation looks too; here the file has a name, and recordings take confidences from here.
  const Status fits = CheckCalibration(*table, runtime.draft_hash(), runtime.target_hash(),
                                       Runtime::version(), runtime.drafts_max());
  if (!fits.ok()) return fits.WithContext(where);
  return std::optional(std::move(*table));
}

struct Engine::Impl {
  Impl(std::unique_ptr<Runtime> r, std::unique_ptr<Speculation> speculation, const EngineOptions& o)
      : options(o), runtime(std::move(r)), loop(*runtime, o, std::move(speculation), queue, SecondsNow) {}

  Status ReadDefaultSampling() {
    if (!runtime->files().Contains("generation_config.json")) return Status();
    ASSIGN_OR_RETURN(const std::string_view json, runtime->files().FindText("generation_config.json"));
    ASSIGN_OR_RETURN(default_sampling, ParseGenerationConfig(json));
    return Status();
  }
  void Run();
  // With `mutex`.
  bool HasWork() const {
    return statistics.generated_tokens < stop_at && (is_busy || clear || !inbox.empty());
  }

  const EngineOptions options;
  const std::unique_ptr<Runtime> runtime;
  QueueGauge queue;
  EngineLoop loop;  // the thread's, once it runs
  SamplingParams default_sampling;
  std::string speculation_report;

  mutable std::mutex mutex;
  std::condition_variable wake;
  mutable std::condition_variable rest;
  // Under `mutex`:
  bool stop = false;
  bool clear = false;
  bool is_busy = false;     // requests are left behind the last step
  bool is_waiting = false;  // between two steps
  int64_t stop_at = EngineAccess::kNever;
  std::vector<std::shared_ptr<Ticket>> inbox;  // at most queued_requests_max
  std::unordered_map<RequestNumber, std::shared_ptr<Ticket>> live;
  RequestNumber last_number = 0;
  EngineStatistics statistics;

  std::jthread thread;  // the last member: it ends first
};

void Engine::Impl::Run() {
  std::vector<std::shared_ptr<Ticket>> arrived;
  std::vector<RequestNumber> finished;
  for (bool busy = false;;) {
    bool clear_now = false;
    {
      std::unique_lock lock(mutex);
      statistics = loop.statistics();
      is_busy = busy;
      for (RequestNumber number : finished) live.erase(number);
      is_waiting = true;
      if (!HasWork()) rest.notify_all();
      wake.wait(lock, [&] { return stop || HasWork(); });
      is_waiting = false;
      if (stop) break;
      std::swap(arrived, inbox);
      clear_now = std::exchange(clear, false);
    }
    for (std::shared_ptr<Ticket>& ticket : arrived) loop.Add(std::move(ticket));
    arrived.clear();
    if (clear_now) loop.ClearKeptPrefixes();
    busy = loop.Step();
    loop.TakeFinished(finished);
  }
  for (std::shared_ptr<Ticket>& ticket : inbox) loop.Add(std::move(ticket));
  loop.CancelAll();
}

Result<std::unique_ptr<Engine>> EngineAccess::Make(std::unique_ptr<Runtime> runtime,
                                                   const EngineOptions& options) {
  RETURN_IF_ERROR(CheckEngineOptions(options));
  ASSIGN_OR_RETURN(std::unique_ptr<Speculation> speculation, MakeSpeculation(*runtime, options));
  return Start(std::move(runtime), std::move(speculation), options);
}

Result<std::unique_ptr<Engine>> EngineAccess::MakeReplay(std::unique_ptr<Runtime> runtime,
                                                         const EngineOptions& options,
                                                         const DraftTrace* trace) {
  if (trace == nullptr) return Make(std::move(runtime), options);
  RETURN_IF_ERROR(CheckEngineOptions(options));
  ASSIGN_OR_RETURN(const StepCostTable costs, CostsOf(*runtime, options));
  ASSIGN_OR_RETURN(std::unique_ptr<Speculation> speculation,
                   Speculation::CreateReplay(
                       options.speculation, *runtime,
                       {.max_sequences = options.max_sequences, .step_rows_max = runtime->step_rows_max()},
                       costs, *trace));
  return Start(std::move(runtime), std::move(speculation), options);
}

Result<std::unique_ptr<Engine>> EngineAccess::Start(std::unique_ptr<Runtime> runtime,
                                                    std::unique_ptr<Speculation> speculation,
                                                    const EngineOptions& options) {
  std::string report = speculation == nullptr ? "" : speculation->Report();
  auto impl = std::make_unique<Engine::Impl>(std::move(runtime), std::move(speculation), options);
  RETURN_IF_ERROR(impl->ReadDefaultSampling());
  impl->speculation_report = std::move(report);
  Engine::Impl* const started = impl.get();
  started->thread = std::jthread([started] { started->Run(); });
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

const Runtime& EngineAccess::runtime(const Engine& engine) {
  return *engine.impl_->runtime;
}

void EngineAccess::StopAt(Engine& engine, int64_t generated_tokens) {
  {
    const std::lock_guard lock(engine.impl_->mutex);
    engine.impl_->stop_at = generated_tokens;
  }
  engine.impl_->wake.notify_one();
}

bool EngineAccess::WaitUntilAtRest(const Engine& engine, std::chrono::milliseconds at_most) {
  const Engine::Impl& impl = *engine.impl_;
  std::unique_lock lock(impl.mutex);
  return impl.rest.wait_for(lock, at_most, [&] { return impl.is_waiting && !impl.HasWork(); });
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->wake.notify_one();
}

Result<RequestNumber> Engine::Submit(Request request, std::shared_ptr<EventSink> sink) {
  if (sink == nullptr) return InvalidArgument("a request needs a sink for its answer");
  RETURN_IF_ERROR(ValidateRequest(request, {.vocab_size = vocab_size(),
                                            .context_tokens = context_tokens(),
                                            .has_tokenizer = tokenizer() != nullptr}));
  auto ticket = std::make_shared<Ticket>();
  const int64_t tokens = std::ssize(request.prompt);
  ticket->request = std::move(request);
  ticket->sink = std::move(sink);
  ticket->submitted = SecondsNow();
  const EngineOptions& options = impl_->options;
  {
    const std::lock_guard lock(impl_->mutex);
    // From the sink of what its end has cancelled: nobody would take it from the inbox.
    if (impl_->stop) return Error(StatusCode::kUnavailable, "the engine is ending");
    if (impl_->queue.requests.load() >= options.queued_requests_max) {
      return ResourceExhausted("the queue is full: {} requests are waiting", options.queued_requests_max);
    }
    if (impl_->queue.tokens.load() + tokens > options.queued_tokens_max) {
      return ResourceExhausted("the queue is full: {} prompt tokens may wait, {} do",
                               options.queued_tokens_max, impl_->queue.tokens.load());
    }
    impl_->queue.requests.fetch_add(1);
    impl_->queue.tokens.fetch_add(tokens);
    ticket->number = ++impl_->last_number;
    impl_->live.emplace(ticket->number, ticket);
    impl_->inbox.push_back(ticket);
  }
  impl_->wake.notify_one();
  return ticket->number;
}

void Engine::Cancel(RequestNumber number) {
  // The thread sees it before its next step; it is not idle while the request is alive.
  const std::lock_guard lock(impl_->mutex);
  if (const auto it = impl_->live.find(number); it != impl_->live.end()) it->second->cancelled = true;
}

namespace {

// Hands events to a function and lets a thread wait for the end.
class WaitingSink : public EventSink {
 public:
  explicit WaitingSink(const std::function<void(const OutputEvent&)>& on_output) : on_output_(on_output) {}

  void OnOutput(const OutputEvent& event) override {
    if (on_output_) on_output_(event);
  }
  void OnFinish(const RequestResult& result) override {
    const std::lock_guard lock(mutex_);
    result_ = result;
    ended_.notify_all();
  }
  // False when it took longer than a poll.
  bool WaitAWhile() {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, kCancelPoll, [this] { return result_.has_value(); });
  }
  RequestResult Wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return result_.has_value(); });
    return std::move(*result_);
  }

 private:
  const std::function<void(const OutputEvent&)>& on_output_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<RequestResult> result_;
};

}  // namespace

Result<RequestResult> Engine::Generate(Request request,
                                       const std::function<void(const OutputEvent&)>& on_output,
                                       const std::atomic<bool>* cancel) {
  const auto sink = std::make_shared<WaitingSink>(on_output);
  ASSIGN_OR_RETURN(const RequestNumber number, Submit(std::move(request), sink));
  while (cancel != nullptr && !sink->WaitAWhile()) {
    if (cancel->load()) {
      Cancel(number);
      break;
    }
  }
  RequestResult result = sink->Wait();
  if (!result.status.ok()) return result.status;
  return result;
}

Result<std::vector<TokenId>> Engine::Encode(std::string_view text) const {
  if (tokenizer() == nullptr)
    return InvalidArgument("{} has no tokenizer.json", impl_->runtime->files().origin());
  return tokenizer()->Encode(text, {.add_bos = tokenizer()->bos_id().has_value()});
}

Result<std::string> Engine::Decode(std::span<const TokenId> tokens) const {
  if (tokenizer() == nullptr)
    return InvalidArgument("{} has no tokenizer.json", impl_->runtime->files().origin());
  return tokenizer()->Decode(tokens, {.skip_special = true});
}

std::string_view Engine::draft_method() const {
  return DraftMethodName(impl_->runtime->draft_method());
}

std::string_view Engine::draft_head() const {
  return impl_->runtime->draft_head();
}

const SamplingParams& Engine::default_sampling() const {
  return impl_->default_sampling;
}

int Engine::vocab_size() const {
  return impl_->runtime->config().vocab_size;
}

int64_t Engine::context_tokens() const {
  return impl_->runtime->context_tokens();
}

const Tokenizer* Engine::tokenizer() const {
  return impl_->runtime->tokenizer();
}

std::string Engine::StartUpReport() const {
  return impl_->runtime->StartUpReport() + impl_->speculation_report;
}

EngineStatistics Engine::statistics() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->statistics;
}

void Engine::ClearKeptPrefixes() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->clear = true;
  }
  impl_->wake.notify_one();
}

}  // namespace foresight
