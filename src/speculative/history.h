// What earlier steps have shown of each request: all that a planner may know before the drafts of a step
// exist.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"

namespace foresight {

// A place in the engine's table of sequences, and which of its tenants.
struct RequestId {
  int slot = 0;             // [0, slots_max)
  uint32_t generation = 0;  // changes when the slot gets a new sequence: what is known of the old one is void
};

// One thread at a time; allocates in the constructor only.
class SpeculationHistory {
 public:
  SpeculationHistory(int slots_max, int drafts_max);
  // Before the first step: how often draft j is accepted when it is reached, as far as somebody has measured
  // it ([drafts_max]; a calibration has). It stands until requests have shown as much themselves.
  void Expect(std::span<const float> acceptance);

  // A step begins: what is recorded belongs to it.
  void BeginStep() { ++step_; }
  // The confidences of a request's drafts in this step, used or not.
  void RecordConfidences(RequestId id, std::span<const float> confidences);
  // Of the first `verified` drafts of a request `accepted` were accepted.
  void RecordOutcome(RequestId id, int verified, int accepted);

  // Moving average of c[., j] of the request; of all requests, while it has none of its own.
  double MeanConfidence(RequestId id, int j) const {
    const float own = Find(id) != nullptr ? mean_[Place(id.slot, j)] : kUnknown;
    return own >= 0 ? own : all_mean_[j];
  }
  // c[., j] of the request two steps ago or earlier, the newest: what has reached a host that works a step
  // ahead of the device. MeanConfidence when there is none.
  double StaleConfidence(RequestId id, int j) const {
    const Tenant* tenant = Find(id);
    if (tenant != nullptr) {
      for (int half : {tenant->newer, 1 - tenant->newer}) {
        const float value = recent_[Place(2 * id.slot + half, j)];
        if (tenant->steps[half] >= 0 && tenant->steps[half] <= step_ - 2 && value >= 0) return value;
      }
    }
    return MeanConfidence(id, j);
  }
  // How often draft j was accepted when it was reached and verified: the confidence of drafters that give
  // none. A moving average as above.
  double AcceptanceRate(RequestId id, int j) const;

  // Whether somebody had before the first step.
  bool is_measured() const { return is_measured_; }
  int drafts_max() const { return drafts_max_; }

 private:
  static constexpr float kUnknown = -1;
  struct Tenant {
    uint32_t generation = 0;
    bool known = false;
    int64_t steps[2] = {-1, -1};  // of the rows in recent_: the newer one first
    int newer = 0;                // which half of recent_ it is
  };
  Tenant& TenantOf(RequestId id);
  const Tenant* Find(RequestId id) const {
    CHECK(id.slot >= 0 && id.slot < std::ssize(tenants_), "slot {}", id.slot);
    const Tenant& tenant = tenants_[id.slot];
    return tenant.known && tenant.generation == id.generation ? &tenant : nullptr;
  }
  size_t Place(int slot, int j) const { return size_t(slot) * drafts_max_ + j; }

  int drafts_max_;
  int64_t step_ = 0;
  bool is_measured_ = false;
  std::vector<Tenant> tenants_;    // [slots_max]
  std::vector<float> mean_;        // [slots_max, drafts_max]; < 0: none yet
  std::vector<float> acceptance_;  // [slots_max, drafts_max]; < 0: none yet
  std::vector<float> recent_;      // [slots_max, 2, drafts_max]; < 0: none
  std::vector<float> all_mean_;    // [drafts_max], of all requests
  std::vector<float> all_acceptance_;
  std::vector<int> all_means_;  // [drafts_max]: rounds in all_mean_, as far as they matter
  std::vector<int> all_acceptances_;
};

}  // namespace foresight
