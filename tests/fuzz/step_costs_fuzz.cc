// Step costs: what is let through can be looked up, and comes back from its own text.
#include "speculative/step_costs.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  const Result<StepCostTable> table = ParseStepCosts({reinterpret_cast<const char*>(data), size});
  if (!table.ok()) return 0;
  const Result<StepCosts> costs = StepCosts::Create(*table, /*rows_max=*/64, /*requests_max=*/8);
  CHECK(costs.ok());
  const std::span<const double> ms = costs->VerifyMs(100);
  for (size_t i = 1; i < ms.size(); ++i) CHECK(ms[i] >= ms[i - 1] && ms[i] > 0);
  // Times are written with six digits: small differences may be lost, nothing else.
  const std::string text = FormatStepCosts(*table);
  const Result<StepCostTable> again = ParseStepCosts(text);
  if (again.ok()) CHECK(FormatStepCosts(*again) == text);
  return 0;
}
