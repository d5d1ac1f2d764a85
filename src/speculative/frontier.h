// What a planner may see of a round (dspark.md 5.2), as types.
//
// Whether draft (r, j) is verified must not depend on its token, on anything computed from it, or on later
// drafts of its request. The engine holds RoundConfidences; a planner gets a Frontier, which shows of each
// request the confidence of the next token alone, and that of the one behind it only once this one is
// admitted. Admission can't be taken back. So a planner that compiles can't look ahead.
#pragma once

#include <span>
#include <vector>

#include "base/check.h"

namespace foresight {

// The confidences of one round: c[r, j] is the probability that draft j (0-based) of request r is accepted,
// given that those before it are; it is computed from the tokens before draft j alone. Allocates in the
// constructor only.
class RoundConfidences {
 public:
  RoundConfidences(int requests_max, int drafts_max);

  // Begins a round. depths[r]: how many drafts request r has; nothing is admitted. `all_coupled`: every
  // request that has drafts is verified with the coupled rule.
  void Begin(std::span<const int> depths, bool all_coupled);
  // The confidences of request r, each in [0, 1]; fewer than depth(r) make it shorter. Those never set are 1.
  void Set(int r, std::span<const float> confidences);
  // The confidences of all drafts of request r, known only now that the plan is made.
  void SetLate(int r, std::span<const float> confidences);

  int num_requests() const { return static_cast<int>(depths_.size()); }
  int depth(int r) const { return depths_[r]; }
  std::span<const float> of(int r) const {
    return {&confidences_[size_t(r) * drafts_max_], size_t(depths_[r])};
  }
  // How many drafts of each request have been admitted: the plan.
  std::span<const int> admitted() const { return admitted_; }
  // How many of those will be accepted, going by their confidences.
  std::span<const double> expected() const { return expected_; }

 private:
  friend class Frontier;
  void Store(int r, std::span<const float> confidences);

  int drafts_max_;
  bool all_coupled_ = false;
  std::vector<int> depths_;
  std::vector<int> admitted_;
  std::vector<double> expected_;
  std::vector<double> survivals_;   // of the next draft of each request; 0 when there is none
  std::vector<float> confidences_;  // [requests_max, drafts_max]
};

// The planner's view of a round.
class Frontier {
 public:
  explicit Frontier(RoundConfidences& round) : round_(round) {}

  int num_requests() const { return round_.num_requests(); }
  int depth(int r) const { return round_.depths_[r]; }
  int admitted(int r) const { return round_.admitted_[r]; }
  bool exhausted(int r) const { return admitted(r) == depth(r); }
  // Of the next draft, j = admitted(r): c[r, j]. Not for an exhausted request.
  double confidence(int r) const {
    CHECK(!exhausted(r));
    return round_.confidences_[static_cast<size_t>(r) * round_.drafts_max_ + admitted(r)];
  }
  // c[r, 0] * .. * c[r, j]: the probability that it is reached and accepted. 0 for an exhausted request.
  double survival(int r) const { return round_.survivals_[r]; }
  // Has the next draft of r verified and shows the one behind it.
  void Admit(int r) {
    CHECK(!exhausted(r));
    round_.expected_[r] += round_.survivals_[r];
    ++round_.admitted_[r];
    round_.survivals_[r] = exhausted(r) ? 0 : round_.survivals_[r] * confidence(r);
  }

  // Everything, for the planner that tests hold the others against. Exact with the coupled rule alone, where
  // the emitted token is the target's own draw whatever is verified; with any other this is a CHECK.
  const RoundConfidences& Unrestricted() const;

 private:
  RoundConfidences& round_;
};

}  // namespace foresight
