#include "request/validate.h"

#include <gtest/gtest.h>

#include <limits>

namespace foresight {
namespace {

constexpr RequestLimits kLimits = {.vocab_size = 100, .context_tokens = 64};

Request Good() {
  return {.prompt = {1, 2, 99}};
}

TEST(ValidateRequest, AcceptsWhatFits) {
  EXPECT_TRUE(ValidateRequest(Good(), kLimits).ok());
  Request longest = Good();
  longest.prompt.assign(63, 5);
  EXPECT_TRUE(ValidateRequest(longest, kLimits).ok());
}

TEST(ValidateRequest, NamesWhatIsOutOfRange) {
  const auto refused = [](const Request& request, std::string_view word) {
    const Status status = ValidateRequest(request, kLimits);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << word;
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  };
  Request request = Good();
  request.prompt.clear();
  refused(request, "prompt");
  request.prompt.assign(64, 5);
  refused(request, "context");
  request.prompt = {1, 100};
  refused(request, "vocabulary");
  request.prompt = {-1};
  refused(request, "vocabulary");
  request = Good();
  request.priority = kPriorityMax + 1;
  refused(request, "priority");
  request = Good();
  request.drafts_max = -1;
  refused(request, "drafts_max");
  request = Good();
  request.timeout_seconds = -1;
  refused(request, "timeout");
  request.timeout_seconds = std::numeric_limits<double>::quiet_NaN();
  refused(request, "timeout");
  request = Good();
  request.sampling.top_p = 0;
  refused(request, "top_p");
}

TEST(ValidateRequest, RefusesStopStringsWithoutText) {
  Request request = Good();
  request.sampling.stop = {"end"};
  EXPECT_TRUE(ValidateRequest(request, kLimits).ok());
  RequestLimits limits = kLimits;
  limits.has_tokenizer = false;
  EXPECT_EQ(ValidateRequest(request, limits).code(), StatusCode::kInvalidArgument);
  request.sampling.stop.clear();
  EXPECT_TRUE(ValidateRequest(request, limits).ok());
}

TEST(RequestResult, SpeedsAreOfWhatWasComputed) {
  RequestResult result;
  result.prompt_tokens = 100;
  result.cached_tokens = 60;
  result.completion_tokens = 11;
  EXPECT_EQ(result.decode_tokens_per_second(), 0);
  result.prefill_seconds = 2;
  result.decode_seconds = 5;
  EXPECT_EQ(result.prefill_tokens_per_second(), 20);
  EXPECT_EQ(result.decode_tokens_per_second(), 2);
}

}  // namespace
}  // namespace foresight
