// Bytes <-> token ids, as tokenizer.json says.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace foresight {

// The tokens that open and end a DeepSeek-V4 text (deepseek-v4-model.md 5.1).
inline constexpr std::string_view kBosToken = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEosToken = "<｜end▁of▁sentence｜>";

struct EncodeOptions {
  bool match_added_tokens = true;  // off: text that looks like <｜User｜> is text
  bool add_bos = false;
};

struct DecodeOptions {
  bool skip_special = false;  // leaves out the added tokens that tokenizer.json marks as special
};

// A byte-level BPE tokenizer. Immutable: any thread may use it.
class Tokenizer {
 public:
  static constexpr size_t kTextBytesMax = size_t{1} << 30;

  // json: the contents of a tokenizer.json (what is read of it: tokenizer_json.h); not needed after the call.
  // Errors: kInvalidArgument (syntax, fields, contradictions between them), kUnimplemented (what this can't
  // do).
  static Result<Tokenizer> Load(std::string_view json);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // The ids of a text. Any bytes will do, zeros included: a run of bytes that are not UTF-8 is a piece of its
  // own, and Decode gives the bytes back. Takes O(n log n) for the pre-tokenizer patterns of DeepSeek.
  // Errors: kResourceExhausted for more than kTextBytesMax bytes, and when a pattern of the pre-tokenizer
  // backtracks without end; kInvalidArgument when add_bos is asked of a tokenizer without kBosToken.
  Result<std::vector<TokenId>> Encode(std::string_view text, EncodeOptions options = {}) const;

  // The bytes of ids; not always UTF-8 (StreamingDecoder's output is). Errors: kInvalidArgument for an
  // unknown id.
  Result<std::string> Decode(std::span<const TokenId> ids, DecodeOptions options = {}) const;

  // One more than the largest id. Some ids below may be unknown.
  TokenId vocab_size() const;
  // The id of the added token with this content, or else of the entry with these bytes.
  std::optional<TokenId> TokenToId(std::string_view bytes) const;
  // What an id stands for, valid as long as the tokenizer. Errors: kInvalidArgument for an unknown id.
  Result<std::string_view> TokenBytes(TokenId id) const;
  // Marked as special in added_tokens.
  bool IsSpecial(TokenId id) const;
  std::optional<TokenId> bos_id() const;
  std::optional<TokenId> eos_id() const;

  // How it cuts text, for the load report: "3 patterns, compiled" or "3 patterns, interpreted".
  std::string Description() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace foresight
