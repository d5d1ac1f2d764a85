// Turns ids into text one at a time.
#pragma once

#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace foresight {

// What Push and Finish return is always whole UTF-8 characters: bytes that may still become one are held
// back, bytes that can't are replaced by U+FFFD, one for each maximal subpart (Unicode 15, 3.9). Joined
// together, the parts are Tokenizer::Decode of all ids with the same replacement. One thread at a time; the
// tokenizer must outlive it.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(const Tokenizer& tokenizer, DecodeOptions options = {})
      : tokenizer_(&tokenizer), options_(options) {}

  // The text that this id completes, often empty. Errors: kInvalidArgument for an unknown id, which is
  // ignored.
  Result<std::string> Push(TokenId id);
  // What was held back; the decoder is as new.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  std::string held_;  // at most 3 bytes: the beginning of a character
};

// The text with U+FFFD for each maximal subpart that is not UTF-8.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace foresight
