// tokenizer.json: whatever loads must give texts back.
#include "base/utf8.h"
#include "tests/fuzz/fuzz_input.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace foresight;
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const Result<Tokenizer> tokenizer = Tokenizer::Load(json);
  if (!tokenizer.ok()) {
    CHECK(!tokenizer.status().message().empty());
    return 0;
  }
  CHECK(tokenizer->vocab_size() >= 256);
  for (const std::string_view text :
       {std::string_view("Hello, world! 123456\r\n\t  x = (y+1);\n"),
        std::string_view("Grüße, 你好 ひらがな 🎉\0\x80\xff", 36), json.substr(0, 200)}) {
    for (const bool match : {false, true}) {
      const Result<std::vector<TokenId>> ids = tokenizer->Encode(text, {.match_added_tokens = match});
      if (!ids.ok()) continue;  // a pattern that backtracks without end
      for (const TokenId id : *ids) CHECK(id >= 0 && id < tokenizer->vocab_size());
      const Result<std::string> back = tokenizer->Decode(*ids);
      CHECK(back.ok(), "{}", back.status().ToString());
      // add_prefix_space may put a space in front; a Split may drop what it matches.
      const bool may_drop = json.find("Removed") != json.npos || json.find("\\u") != json.npos;
      CHECK(may_drop || *back == text || *back == " " + std::string(text), "{} became {}", text, *back);
    }
  }
  return 0;
}
