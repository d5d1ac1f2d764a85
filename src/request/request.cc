#include "foresight/request.h"

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

double RequestResult::prefill_tokens_per_second() const {
  return prefill_seconds > 0 ? static_cast<double>(prompt_tokens - cached_tokens) / prefill_seconds : 0;
}

double RequestResult::decode_tokens_per_second() const {
  return decode_seconds > 0 ? static_cast<double>(completion_tokens - 1) / decode_seconds : 0;
}

}  // namespace foresight
