// Text through the embedded model's tokenizer, whose patterns are DeepSeek's; the tail of the input also as
// ids.
#include "base/utf8.h"
#include "tests/fuzz/fuzz_input.h"
#include "tokenizer/streaming_decoder.h"
#include "tokenizer/tokenizer.h"
#include "weights/embedded/embedded_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  static const Tokenizer& tokenizer = *[] {
    static const ModelFiles files = EmbeddedModel();
    return new Tokenizer(*Tokenizer::Load(*files.FindText("tokenizer.json")));
  }();
  FuzzInput input(data, size);
  const std::string text(input.rest());
  for (const bool match : {false, true}) {
    const Result<std::vector<TokenId>> ids = tokenizer.Encode(text, {.match_added_tokens = match});
    CHECK(ids.ok(), "{}", ids.status().ToString());
    CHECK(*tokenizer.Decode(*ids) == text);
    std::string streamed;
    StreamingDecoder decoder(tokenizer);
    for (const TokenId id : *ids) {
      const std::string part = *decoder.Push(id);
      CHECK(ValidUtf8Length(part, 0) == part.size());
      streamed += part;
    }
    streamed += decoder.Finish();
    CHECK(streamed == ReplaceInvalidUtf8(text));
  }
  std::vector<TokenId> ids;
  while (!input.empty()) ids.push_back(input.Take<int16_t>());
  (void)tokenizer.Decode(ids);  // unknown ids are an error
  return 0;
}
