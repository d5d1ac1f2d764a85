#include "speculative/frontier.h"

#include <algorithm>

#include "base/check.h"

namespace foresight {

RoundConfidences::RoundConfidences(int requests_max, int drafts_max)
    : drafts_max_(drafts_max), confidences_(static_cast<size_t>(requests_max) * drafts_max) {
  CHECK(requests_max > 0 && drafts_max > 0);
  depths_.reserve(requests_max);
  admitted_.reserve(requests_max);
  expected_.reserve(requests_max);
  survivals_.reserve(requests_max);
}

void RoundConfidences::Begin(std::span<const int> depths, bool all_coupled) {
  CHECK(depths.size() <= depths_.capacity());
  all_coupled_ = all_coupled;
  depths_.assign(depths.begin(), depths.end());
  admitted_.assign(depths.size(), 0);
  expected_.assign(depths.size(), 0);
  survivals_.assign(depths.size(), 0);
  std::fill_n(confidences_.begin(), depths.size() * drafts_max_, 1.0f);
  for (int r = 0; r < num_requests(); ++r) {
    CHECK(depth(r) >= 0 && depth(r) <= drafts_max_, "request {} has {} drafts", r, depth(r));
    if (depth(r) > 0) survivals_[r] = 1;
  }
}

void RoundConfidences::Set(int r, std::span<const float> confidences) {
  CHECK(r >= 0 && r < num_requests() && admitted_[r] == 0);
  CHECK(std::ssize(confidences) <= depth(r), "request {}: {} confidences for {} drafts", r,
        confidences.size(), depth(r));
  Store(r, confidences);
  depths_[r] = static_cast<int>(confidences.size());
  survivals_[r] = confidences.empty() ? 0 : confidences[0];
}

void RoundConfidences::SetLate(int r, std::span<const float> confidences) {
  CHECK(r >= 0 && r < num_requests());
  CHECK(std::ssize(confidences) == depth(r), "request {}: {} confidences for {} drafts", r,
        confidences.size(), depth(r));
  Store(r, confidences);
  expected_[r] = 0;
  double survival = 1;
  for (int j = 0; j < admitted_[r]; ++j) expected_[r] += survival *= confidences[j];
}

void RoundConfidences::Store(int r, std::span<const float> confidences) {
  for (float c : confidences) CHECK(c >= 0 && c <= 1, "confidence {}", c);  // NaN fails, too
  std::copy(confidences.begin(), confidences.end(),
            confidences_.begin() + static_cast<size_t>(r) * drafts_max_);
}

const RoundConfidences& Frontier::Unrestricted() const {
  CHECK(round_.all_coupled_, "a plan from all confidences is exact with the coupled rule only");
  return round_;
}

}  // namespace foresight
