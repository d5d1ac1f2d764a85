#include "foresight/request.h"

#include <numeric>

namespace foresight {

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "";
}

int64_t DraftCounts::total_verified() const {
  return std::accumulate(verified.begin(), verified.end(), int64_t{0});
}

int64_t DraftCounts::total_accepted() const {
  return std::accumulate(accepted.begin(), accepted.end(), int64_t{0});
}

void DraftCounts::Add(const DraftCounts& other) {
  steps += other.steps;
  drafted += other.drafted;
  without_room += other.without_room;
  for (int k = 0; k < kDraftPositionsMax; ++k) {
    verified[k] += other.verified[k];
    reached[k] += other.reached[k];
    accepted[k] += other.accepted[k];
  }
}

double RequestResult::prefill_tokens_per_second() const {
  return prefill_seconds > 0 ? static_cast<double>(prompt_tokens - cached_tokens) / prefill_seconds : 0;
}

double RequestResult::decode_tokens_per_second() const {
  return decode_seconds > 0 ? static_cast<double>(completion_tokens - 1) / decode_seconds : 0;
}

}  // namespace foresight
