// The parser of answers: however the text is cut, the parts are the same, and arguments are JSON objects.
#include "chat/output_parser.h"
#include "chat/python_json.h"
#include "tests/fuzz/fuzz_input.h"
#include "tokenizer/tokenizer.h"

namespace foresight {
namespace {

class Joiner : public OutputSink {
 public:
  void OnReasoning(std::string_view text) override { output.reasoning += text; }
  void OnContent(std::string_view text) override { output.content += text; }
  void OnCallBegin(std::string_view name) override {
    output.tool_calls.push_back({"", std::string(name), ""});
  }
  void OnCallArguments(std::string_view json) override { output.tool_calls.back().arguments += json; }
  void OnCallEnd() override { ++calls_ended; }

  ChatOutput output;
  size_t calls_ended = 0;
};

}  // namespace
}  // namespace foresight

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  FuzzInput input(data, size);
  const uint8_t flags = input.Take<uint8_t>();
  const size_t piece = 1 + input.Take<uint8_t>() % 16;
  const OutputParserOptions options = {.in_reasoning = (flags & 1) != 0,
                                       .parse_tool_calls = (flags & 2) != 0};
  std::string_view text = input.rest();
  const Result<ChatOutput> whole = ParseOutput(text, options);
  if (const size_t end = text.find(kEosToken); end != text.npos) {
    if (!whole.ok()) return 0;
    text = text.substr(0, end);
  }

  Joiner joiner;
  OutputParser parser(options, &joiner);
  Status status;
  for (size_t at = 0; at < text.size() && status.ok(); at += piece)
    status = parser.Push(text.substr(at, piece));
  if (status.ok()) status = parser.Finish();
  CHECK(status.ok() == whole.ok(), "{} and {}", status.ToString(), whole.status().ToString());
  if (!options.parse_tool_calls) CHECK(whole.ok());
  if (!whole.ok()) return 0;
  CHECK(joiner.output == *whole);
  CHECK(joiner.calls_ended == whole->tool_calls.size());
  for (const ToolCall& call : whole->tool_calls) {
    const auto members = PythonJsonMembers(call.arguments);
    // The text that the model wrote need not be UTF-8 here; in the program the decoder sees to it.
    CHECK(members.ok() || !call.arguments.empty());
  }
  return 0;
}
