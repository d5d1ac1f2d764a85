// Reading tokenizer.json: what it says, checked, and with everything that this program can't do refused by
// name.
#pragma once

#include <boost/json/value.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "tokenizer/split.h"

namespace foresight {

struct AddedToken {
  TokenId id;
  std::string_view content;
  bool is_special;  // dropped when special tokens are skipped
  // Matched in the second pass, on the text that the tokens with is_normalized = false left over. (The
  // normalizer itself is always the empty one.)
  bool is_normalized;
};

// The views are into the JSON document.
struct TokenizerJson {
  std::vector<std::pair<std::string_view, TokenId>> vocab;            // spellings in the byte alphabet
  std::vector<std::pair<std::string_view, std::string_view>> merges;  // spellings, by rising rank
  std::vector<AddedToken> added_tokens;
  std::vector<SplitConfig> splits;  // one after the other, each on the pieces of the one before
  bool add_prefix_space = false;    // a text that does not start with a space gets one
  bool ignore_merges = false;
};

// What is read: model BPE in the byte alphabet; a pre-tokenizer of Split steps (any pattern and behaviour)
// and one ByteLevel at the end; added tokens without lstrip, rstrip and single_word; no normalizer; decoder
// ByteLevel. The post-processor is not read: it adds special tokens or moves offsets, and no token is added
// here unless asked. Errors: kInvalidArgument (missing, wrong type), kUnimplemented (valid, but not among the
// above); each names the field.
Result<TokenizerJson> ReadTokenizerJson(const boost::json::value& document);

}  // namespace foresight
