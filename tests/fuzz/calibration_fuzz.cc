// Calibration files: what is let through gives probabilities, and comes back from its own text.
#include "speculative/calibration.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  const Result<CalibrationTable> table = ParseCalibration({reinterpret_cast<const char*>(data), size});
  if (!table.ok()) return 0;
  const Calibration calibration(*table);
  for (int i = 0; i < kNumSamplingRegimes; ++i) {
    for (int k = 0; k < table->drafts_max; ++k) {
      for (float logit : {-1e30f, -3.0f, 0.0f, 3.0f, 1e30f}) {
        for (float margin : {0.0f, 16.0f}) {
          const float c =
              calibration.Confidence(static_cast<SamplingRegime>(i), k, {.logit = logit, .margin = margin});
          CHECK(c >= 0 && c <= 1);
        }
      }
    }
  }
  const std::string text = FormatCalibration(*table);
  const Result<CalibrationTable> again = ParseCalibration(text);
  CHECK(again.ok(), "{}", again.status().ToString());
  CHECK(FormatCalibration(*again) == text);
  return 0;
}
