// The writer of JSON for prompts: what it writes it reads, and writes again the same.
#include "chat/python_json.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<std::string> json = PythonJson(text);
  const auto members = PythonJsonMembers(text);
  if (!json.ok()) {
    CHECK(!members.ok());
    return 0;
  }
  if (json->find("Infinity") != json->npos)
    return 0;  // Python's writer leaves JSON for numbers beyond a double
  const Result<std::string> again = PythonJson(*json);
  CHECK(again.ok() && *again == *json, "{} became {}", *json,
        again.ok() ? *again : again.status().ToString());
  CHECK(members.ok() == (json->front() == '{'));
  return 0;
}
