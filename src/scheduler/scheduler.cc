#include "scheduler/scheduler.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace foresight {

Scheduler::Scheduler(const SchedulerOptions& options, SequenceMemory& memory)
    : options_(options), memory_(memory) {
  CHECK(options_.max_sequences >= 1 && options_.max_sequences <= options_.step_rows_max,
        "{} sequences, steps of {} rows", options_.max_sequences, options_.step_rows_max);
  CHECK(options_.mixed_prefill_rows_max >= 1 && options_.draft_rows_max >= 0);
  running_.reserve(options_.max_sequences);
  plan_.reserve(options_.max_sequences);
}

bool Scheduler::Before(SequenceHandle a, SequenceHandle b) const {
  return std::tie(entries_[a].due, entries_[a].number) < std::tie(entries_[b].due, entries_[b].number);
}

void Scheduler::InsertInOrder(std::vector<SequenceHandle>& list, SequenceHandle sequence) {
  const auto place = std::upper_bound(list.begin(), list.end(), sequence,
                                      [this](SequenceHandle a, SequenceHandle b) { return Before(a, b); });
  list.insert(place, sequence);
}

void Scheduler::Erase(std::vector<SequenceHandle>& list, SequenceHandle sequence) {
  const auto place = std::find(list.begin(), list.end(), sequence);
  CHECK(place != list.end());
  list.erase(place);
}

SequenceHandle Scheduler::Add(int64_t known, int priority, double now) {
  CHECK(known >= 1);
  if (free_.empty()) {
    free_.push_back(static_cast<SequenceHandle>(entries_.size()));
    entries_.emplace_back();
  }
  const SequenceHandle sequence = free_.back();
  free_.pop_back();
  entries_[sequence] = {
      .phase = Phase::kWaiting,
      .due = now + priority * options_.priority_seconds + static_cast<double>(known) * options_.token_seconds,
      .number = arrivals_++,
      .known = known};
  InsertInOrder(waiting_, sequence);
  return sequence;
}

void Scheduler::Update(SequenceHandle sequence, int64_t computed, int64_t known) {
  Entry& entry = entries_[sequence];
  CHECK(entry.phase == Phase::kRunning && computed < known, "{} of {} tokens computed", computed, known);
  entry.computed = computed;
  entry.known = known;
}

void Scheduler::Remove(SequenceHandle sequence) {
  Entry& entry = entries_[sequence];
  CHECK(entry.phase != Phase::kNone);
  Erase(entry.phase == Phase::kRunning ? running_ : waiting_, sequence);
  entry = {};
  free_.push_back(sequence);
}

int Scheduler::ChunkRows(const Entry& entry, int64_t rows_max) const {
  int64_t rows = std::min(entry.known - entry.computed, rows_max);
  for (const int64_t stop : entry.stops) {
    if (stop > entry.computed) rows = std::min(rows, stop - entry.computed);
  }
  return static_cast<int>(rows);
}

void Scheduler::PreemptLast() {
  const SequenceHandle last = running_.back();
  running_.pop_back();
  memory_.Preempt(last);
  entries_[last].phase = Phase::kWaiting;
  InsertInOrder(waiting_, last);
  ++preemptions_;
}

bool Scheduler::ReserveInOrder(size_t i, int rows) {
  while (!memory_.Reserve(running_[i], rows)) {
    CHECK(running_.size() > 1, "a sequence does not fit by itself");
    PreemptLast();
    if (i == running_.size()) return false;
  }
  return true;
}

// Running sequences grow: some of them will want another block before long.
int64_t Scheduler::Headroom() const {
  constexpr int64_t kSequencesPerBlock = 4;
  return (running() + kSequencesPerBlock - 1) / kSequencesPerBlock;
}

void Scheduler::AddRows(SequenceHandle sequence, int rows) {
  const Entry& entry = entries_[sequence];
  const int64_t left = entry.known - entry.computed;
  plan_.push_back({.sequence = sequence, .rows = rows, .is_last = rows == left, .is_decode = left == 1});
}

std::span<const ScheduledRows> Scheduler::Plan() {
  plan_.clear();
  int64_t decoding = 0;
  for (SequenceHandle s : running_) decoding += entries_[s].known - entries_[s].computed == 1 ? 1 : 0;
  // Every decoding sequence has its row; drafts are given up for prefill, not the other way round, only
  // beyond half of a step.
  const int64_t draft_rows =
      std::min<int64_t>(decoding * options_.draft_rows_max, (options_.step_rows_max - decoding) / 2);
  int64_t prefill_rows = options_.step_rows_max - decoding - draft_rows;
  if (decoding > 0) prefill_rows = std::min<int64_t>(prefill_rows, options_.mixed_prefill_rows_max);

  for (size_t i = 0; i < running_.size(); ++i) {
    const SequenceHandle s = running_[i];
    const bool decodes = entries_[s].known - entries_[s].computed == 1;
    const int rows = decodes ? 1 : ChunkRows(entries_[s], prefill_rows);
    if (rows == 0) continue;
    if (!ReserveInOrder(i, rows)) break;  // it was the last one
    AddRows(s, rows);
    if (!decodes) prefill_rows -= rows;
  }
  while (!waiting_.empty() && running() < options_.max_sequences && prefill_rows > 0) {
    const SequenceHandle s = waiting_.front();
    Entry& entry = entries_[s];
    Admission admission;
    if (!memory_.Admit(s, Headroom(), &admission)) {
      CHECK(!running_.empty(), "a sequence does not fit by itself");
      break;  // those behind it wait as well: it is first
    }
    CHECK(admission.computed < entry.known);
    entry.phase = Phase::kRunning;
    entry.computed = admission.computed;
    entry.stops = admission.stops;
    waiting_.erase(waiting_.begin());
    InsertInOrder(running_, s);
    const int rows = ChunkRows(entry, prefill_rows);
    CHECK(memory_.Reserve(s, rows), "an admitted sequence finds no room for its own tokens");
    AddRows(s, rows);
    prefill_rows -= rows;
  }
  return plan_;
}

}  // namespace foresight
