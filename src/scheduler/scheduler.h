// Which sequences compute how many tokens in the next step. Pure policy: it sees numbers and asks for memory
// through one interface; time is an argument.
//
// Order is one number, the due time: arrival, plus a time for the priority and one for the length of the
// prompt. So smaller priorities and shorter prompts overtake, but none that comes later than a bounded time
// after: nobody starves. Everything goes by that order: admission, rows of a step, and, from the other end,
// preemption. The first in order is never preempted, and it fits by itself, so there is always progress.
//
// One thread; allocates when sequences are added, not in Plan.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace foresight {

// Names a sequence to the scheduler until Remove; small numbers, used again.
using SequenceHandle = int;

struct SchedulerOptions {
  int max_sequences = 8;             // running at a time; at most step_rows_max
  int step_rows_max = 512;           // of all sequences
  int mixed_prefill_rows_max = 128;  // more than one row a sequence, when others decode in the same step
  int draft_rows_max = 0;        // further rows that a decoding sequence may take in a step (verification)
  double priority_seconds = 10;  // what one step of priority is worth
  double token_seconds = 0.002;  // what a token of the prompt is worth: shorter ones first
};

// What a sequence finds of itself when it gets memory.
struct Admission {
  int64_t computed = 0;  // tokens whose state it has
  // Positions at which a prefill chunk ends because a state is kept there; 0: none.
  std::array<int64_t, 2> stops = {};
};

// Memory as the scheduler sees it. The engine answers with KvCache and PrefixCache, tests with arithmetic.
class SequenceMemory {
 public:
  virtual ~SequenceMemory() = default;
  // Gives a sequence its state, if everything that it knows so far and one more token can be held while
  // `headroom` blocks stay free for others; kept prefixes may have to go. False: nothing has changed for the
  // sequence.
  virtual bool Admit(SequenceHandle sequence, int64_t headroom, Admission* admission) = 0;
  // Room for `rows` more tokens of an admitted sequence; kept prefixes may have to go. False: there is none.
  virtual bool Reserve(SequenceHandle sequence, int rows) = 0;
  // Takes the memory back; the sequence will be admitted again.
  virtual void Preempt(SequenceHandle sequence) = 0;
};

struct ScheduledRows {
  SequenceHandle sequence = 0;
  int rows = 0;            // reserved
  bool is_last = false;    // with them everything known is computed: the next token can be drawn
  bool is_decode = false;  // it was all computed but for one token: drafts may follow
};

class Scheduler {
 public:
  // `memory` outlives this object.
  Scheduler(const SchedulerOptions& options, SequenceMemory& memory);

  // A new sequence with `known` (1 or more) tokens, all to be computed.
  SequenceHandle Add(int64_t known, int priority, double now);
  // After a step: tokens with a state, and tokens known. computed < known.
  void Update(SequenceHandle sequence, int64_t computed, int64_t known);
  // It has ended; its memory is the caller's to take back.
  void Remove(SequenceHandle sequence);

  // Decides the next step; valid until the next call. Empty when nothing is running or waiting.
  // Every sequence that has one token left to compute takes part, then prefill fills what is left, in order
  // of due times; then waiting sequences are admitted, never by preempting others.
  std::span<const ScheduledRows> Plan();

  int64_t waiting() const { return std::ssize(waiting_); }
  int64_t running() const { return std::ssize(running_); }
  int64_t preemptions() const { return preemptions_; }
  bool is_running(SequenceHandle sequence) const { return entries_[sequence].phase == Phase::kRunning; }

 private:
  enum class Phase : uint8_t { kNone, kWaiting, kRunning };
  struct Entry {
    Phase phase = Phase::kNone;
    double due = 0;
    int64_t number = 0;  // of arrival: order among equal due times
    int64_t known = 0;
    int64_t computed = 0;
    std::array<int64_t, 2> stops = {};
  };

  bool Before(SequenceHandle a, SequenceHandle b) const;
  void InsertInOrder(std::vector<SequenceHandle>& list, SequenceHandle sequence);
  void Erase(std::vector<SequenceHandle>& list, SequenceHandle sequence);
  // Rows of a chunk that may not pass the next stop.
  int ChunkRows(const Entry& entry, int64_t rows_max) const;
  // Preempts from the end of the order until `running_[i]` has room for `rows`. False: it was preempted
  // itself.
  bool ReserveInOrder(size_t i, int rows);
  void PreemptLast();
  // Blocks that an admission leaves free.
  int64_t Headroom() const;
  void AddRows(SequenceHandle sequence, int rows);

  const SchedulerOptions options_;
  SequenceMemory& memory_;
  std::vector<Entry> entries_;
  std::vector<SequenceHandle> free_;
  std::vector<SequenceHandle> waiting_;  // in order of due times
  std::vector<SequenceHandle> running_;  // in order of due times
  std::vector<ScheduledRows> plan_;
  int64_t arrivals_ = 0;
  int64_t preemptions_ = 0;
};

}  // namespace foresight
