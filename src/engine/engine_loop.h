// The step loop: what the scheduler decides becomes one ragged step of the model, its logits become tokens,
// and those become events. Owns everything that sequences need but the model itself.
//
// The engine's thread alone uses it; only the tickets are shared (sequence.h).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "drawing/token_draws.h"
#include "engine/runtime.h"
#include "engine/sequence.h"
#include "engine/speculation.h"
#include "foresight/engine.h"
#include "kv_cache/prefix_cache.h"
#include "scheduler/preemption.h"
#include "scheduler/scheduler.h"

namespace foresight {

// Requests that have not begun; read by submitting threads.
struct QueueGauge {
  std::atomic<int64_t> requests{0};
  std::atomic<int64_t> tokens{0};  // of their prompts
};

class EngineLoop : private SequenceMemory {
 public:
  using Clock = std::function<double()>;  // seconds since any fixed time

  // `runtime` and `queue` outlive this object. Without `speculation` every step draws one token a sequence.
  EngineLoop(Runtime& runtime, const EngineOptions& options, std::unique_ptr<Speculation> speculation,
             QueueGauge& queue, Clock clock);
  ~EngineLoop() override;

  // Takes over a request that has passed ValidateRequest and is in `queue`.
  void Add(std::shared_ptr<Ticket> ticket);
  // Ends what was cancelled or is late, then computes one step. False: nothing is left to do.
  bool Step();
  // Ends everything.
  void CancelAll();
  void ClearKeptPrefixes() { prefixes_.Clear(); }

  EngineStatistics statistics() const;
  // Requests that have ended since the last call.
  void TakeFinished(std::vector<RequestNumber>& out);

 private:
  // SequenceMemory
  bool Admit(SequenceHandle handle, int64_t headroom, Admission* admission) override;
  bool Reserve(SequenceHandle handle, int rows) override;
  void Preempt(SequenceHandle handle) override;

  bool ReserveRows(Sequence& s, int rows);
  // Evicts kept prefixes other than `keep` until `blocks` are free. False: that many can't be; nothing
  // changes.
  bool FreeBlocks(int64_t blocks, int keep = PrefixCache::kNone);
  bool AdmitSaved(Sequence& s, int64_t headroom);
  bool AdmitByPrefix(Sequence& s, int64_t headroom);
  void Begin(Sequence& s);

  void EndCancelledAndLate();
  // The parts of a step.
  Result<std::span<const int>> Draft(std::span<const ScheduledRows> plan);
  void BuildStep(std::span<const ScheduledRows> plan, std::span<const int> lengths);
  Status BeginDraws(std::span<const ScheduledRows> plan, const StepOutputs& outputs,
                    std::span<const int> lengths);
  // Of a step whose drafts the device has chosen.
  void FollowPlan(std::span<const ScheduledRows> plan, std::span<const int> lengths);
  void Accept(std::span<const ScheduledRows> plan);
  void KeepAndFinish(std::span<const ScheduledRows> plan);
  void FailAll(std::span<const ScheduledRows> plan, const Status& status);
  // Adds tokens to the answer, up to its end, and tells the sink.
  void Extend(Sequence& s, const VerifiedTokens& drawn);
  void KeepPrefix(Sequence& s);
  void Finish(SequenceHandle handle, FinishReason reason, Status status = Status());

  Runtime& runtime_;
  const EngineOptions options_;
  QueueGauge& queue_;
  Clock clock_;
  const std::unique_ptr<Speculation> speculation_;  // may be null
  const int lag_;                                   // of its drafter
  TokenDraws draws_;
  PrefixCache prefixes_;
  Scheduler scheduler_;
  PreemptionCosts preemption_costs_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // by handle; null: none
  std::vector<RequestNumber> finished_;
  EngineStatistics totals_;
  double now_ = 0;  // of the step at hand

  // Of the step at hand; kept for their capacity.
  std::vector<TokenId> step_tokens_;
  std::vector<PlacedToken> step_placed_;
  std::vector<SequenceChunk> step_chunks_;
  std::vector<int32_t> step_logit_rows_;
  std::vector<ChunkDrafts> step_drafts_;  // [chunks], where the device chooses
  DraftPlan step_plan_;
  std::vector<DraftCandidate> candidates_;  // sequences that draw a token
  std::vector<int> no_drafts_;              // zeros
  std::vector<ObservedRows> observed_;      // of all sequences of the step
  std::vector<DrawingSequence> drawing_;    // [candidates]
  std::vector<OutputToken> event_tokens_;
  std::string event_text_;
};

}  // namespace foresight
