// generation_config.json: what is let through is valid.
#include "sampling/sampling_params.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  const Result<SamplingParams> params = ParseGenerationConfig({reinterpret_cast<const char*>(data), size});
  if (params.ok()) CHECK(params->Validate(1).ok());
  return 0;
}
