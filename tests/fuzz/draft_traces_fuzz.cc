// Draft traces: what is let through has a probability for every draft, and comes back from its own text.
#include "speculative/draft_traces.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  const Result<DraftTraces> traces = ParseDraftTraces({reinterpret_cast<const char*>(data), size});
  if (!traces.ok()) return 0;
  for (const DraftTrace& trace : traces->drafters) {
    CHECK(trace.drafts_max > 0 && !trace.domains.empty());
    for (const TracedDomain& domain : trace.domains) {
      CHECK(!domain.answers.empty());
      for (const TracedAnswer& answer : domain.answers) {
        CHECK(!answer.acceptance.empty() && answer.acceptance.size() % trace.drafts_max == 0);
        CHECK(answer.confidences.empty() || answer.confidences.size() == answer.acceptance.size());
        for (float p : answer.acceptance) CHECK(p >= 0 && p <= 1);
        for (float p : answer.confidences) CHECK(p >= 0 && p <= 1);
      }
    }
  }
  const std::string text = FormatDraftTraces(*traces);
  const Result<DraftTraces> again = ParseDraftTraces(text);
  CHECK(again.ok(), "{}", again.status().ToString());
  CHECK(FormatDraftTraces(*again) == text);
  return 0;
}
