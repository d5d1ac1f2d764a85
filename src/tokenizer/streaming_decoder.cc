#include "tokenizer/streaming_decoder.h"

#include <utility>

#include "base/utf8.h"

namespace foresight {
namespace {

// Appends the text up to where it ends inside a character; returns where that is.
size_t AppendUpToTruncation(std::string_view text, std::string* out) {
  size_t pos = 0;
  while (pos < text.size()) {
    size_t valid = ValidUtf8Length(text, pos);
    out->append(text, pos, valid);
    pos += valid;
    if (pos == text.size()) break;
    Utf8Step step = NextUtf8(text, pos);
    if (step.kind == Utf8Step::kTruncated) break;
    *out += kReplacementCharacter;
    pos += step.length;
  }
  return pos;
}

}  // namespace

Result<std::string> StreamingDecoder::Push(TokenId id) {
  ASSIGN_OR_RETURN(std::string_view bytes, tokenizer_->TokenBytes(id));
  if (options_.skip_special && tokenizer_->IsSpecial(id)) return std::string();
  held_ += bytes;
  std::string text;
  held_.erase(0, AppendUpToTruncation(held_, &text));
  return text;
}

std::string StreamingDecoder::Finish() {
  return ReplaceInvalidUtf8(std::exchange(held_, {}));
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  if (AppendUpToTruncation(text, &out) < text.size()) out += kReplacementCharacter;
  return out;
}

}  // namespace foresight
