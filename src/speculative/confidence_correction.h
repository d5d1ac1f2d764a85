// Keeps confidences honest while serving: what a calibration missed, seen from outcomes (dspark.md 4.5).
#pragma once

#include <span>
#include <vector>

#include "speculative/history.h"

namespace foresight {

// Multiplies the confidence of draft j of a request by (accepted / expected to be accepted) of draft j in all
// requests so far and by the same ratio of the request. Only drafts that were reached and verified count:
// given its confidence, whether such a draft is accepted doesn't depend on its having been chosen. Old rounds
// fade. Uses what has happened only: the decisions that follow stay exact. One thread at a time; allocates in
// the constructor only.
class ConfidenceCorrection {
 public:
  ConfidenceCorrection(int slots_max, int drafts_max);

  // A step begins: takes over what the last one has taught.
  void BeginStep();
  // In place. Stays within [0, 1].
  void Apply(RequestId id, std::span<float> confidences) const;
  // The first `verified` drafts had these confidences, as Apply got them; `accepted` were accepted.
  void Learn(RequestId id, std::span<const float> confidences, int verified, int accepted);

 private:
  struct Ratio {
    double accepted = 0;
    double expected = 0;
    double value() const;
    void Add(double was_accepted, double was_expected, double fade);
  };
  struct Request {
    uint32_t generation = 0;
    bool known = false;
    Ratio ratio;
  };

  std::vector<Ratio> positions_;   // [drafts_max]
  std::vector<float> factors_;     // [drafts_max]: their values for this step
  std::vector<Request> requests_;  // [slots_max]
};

}  // namespace foresight
