#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "base/json.h"
#include "base/utf8.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/split.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/vocabulary.h"

namespace foresight {
namespace {

// The working memory of one Encode.
struct EncodeState {
  EncodeState(size_t num_splits, size_t text_bytes) : pieces(num_splits), bpe_scratch(text_bytes) {}

  SplitScratch split_scratch;
  std::vector<std::vector<std::string_view>> pieces;  // what each split made of the piece it is at
  Bpe::Scratch bpe_scratch;
  std::vector<TokenId> ids;
};

}  // namespace

struct Tokenizer::Impl {
  Vocabulary vocabulary;
  std::optional<Bpe> bpe;
  std::vector<Split> splits;
  bool add_prefix_space = false;
  // Added tokens are looked for twice: these in the whole text, those in what is left.
  AddedTokenTrie first_tokens, second_tokens;
  std::unordered_map<std::string_view, TokenId> added_ids;  // views into the vocabulary
  std::vector<bool> is_special;                             // by id
  std::optional<TokenId> bos_id, eos_id;

  Status Build(const TokenizerJson& config);
  Status BuildVocabulary(const TokenizerJson& config);
  Status BuildMerges(const TokenizerJson& config);
  void BuildAddedTokens(const TokenizerJson& config);

  Status EncodeText(std::string_view text, EncodeState* state) const;
  Status EncodePiece(std::string_view piece, size_t split_idx, EncodeState* state) const;
};

namespace {

// Calls encode(text) for the stretches between added tokens, none of them empty, and appends the tokens.
template <typename EncodeStretch>
Status ForEachStretch(const AddedTokenTrie& tokens, std::string_view text, std::vector<TokenId>* ids,
                      const EncodeStretch& encode) {
  size_t begin = 0;
  while (begin < text.size()) {
    std::optional<AddedTokenTrie::Match> match = tokens.Find(text, begin);
    size_t end = match ? match->begin : text.size();
    if (end > begin) RETURN_IF_ERROR(encode(text.substr(begin, end - begin)));
    if (!match) break;
    ids->push_back(match->id);
    begin = match->begin + match->length;
  }
  return Status();
}

}  // namespace

Result<Tokenizer> Tokenizer::Load(std::string_view json) {
  ASSIGN_OR_RETURN(boost::json::value document, ParseJson(json));
  ASSIGN_OR_RETURN(TokenizerJson config, ReadTokenizerJson(document));
  auto impl = std::make_unique<Impl>();
  RETURN_IF_ERROR(impl->Build(config));
  return Tokenizer(std::move(impl));
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Status Tokenizer::Impl::Build(const TokenizerJson& config) {
  RETURN_IF_ERROR(BuildVocabulary(config));
  RETURN_IF_ERROR(BuildMerges(config));
  BuildAddedTokens(config);
  add_prefix_space = config.add_prefix_space;
  for (size_t i = 0; i < config.splits.size(); ++i) {
    auto split = Split::Compile(config.splits[i]);
    if (!split.ok()) return split.error().WithContext(fmt::format("pre_tokenizer: pattern {}", i));
    splits.push_back(std::move(*split));
  }
  return Status();
}

Status Tokenizer::Impl::BuildVocabulary(const TokenizerJson& config) {
  std::unordered_map<std::string_view, TokenId> added;
  for (const AddedToken& token : config.added_tokens) {
    if (!added.emplace(token.content, token.id).second) {
      return InvalidArgument("added_tokens: '{}' is given twice", token.content);
    }
  }
  for (const auto& [spelling, id] : config.vocab) {
    // An added token may stand in the vocabulary too, under the same id.
    if (auto it = added.find(spelling); it != added.end()) {
      if (it->second == id) continue;
      return InvalidArgument("'{}' has id {} in model.vocab and {} in added_tokens", spelling, id,
                             it->second);
    }
    std::optional<std::string> bytes = BytesFromSpelling(spelling);
    Status status = bytes ? vocabulary.Add(id, *bytes) : vocabulary.AddAside(id, spelling);
    RETURN_IF_ERROR(status.WithContext(fmt::format("model.vocab: '{}'", spelling)));
  }
  for (const AddedToken& token : config.added_tokens) {
    RETURN_IF_ERROR(vocabulary.AddAside(token.id, token.content)
                        .WithContext(fmt::format("added_tokens: '{}'", token.content)));
  }
  return vocabulary.BuildIndex().WithContext("model.vocab");
}

Status Tokenizer::Impl::BuildMerges(const TokenizerJson& config) {
  auto find = [&](std::string_view spelling) -> std::optional<TokenId> {
    std::optional<std::string> bytes = BytesFromSpelling(spelling);
    return bytes ? vocabulary.FindBytes(*bytes) : std::nullopt;
  };
  std::vector<Bpe::Merge> merges;
  merges.reserve(config.merges.size());
  for (const auto& [left, right] : config.merges) {
    std::optional<TokenId> left_id = find(left), right_id = find(right);
    if (!left_id || !right_id) {
      return InvalidArgument("model.merges[{}]: '{}' is not in model.vocab", merges.size(),
                             left_id ? right : left);
    }
    merges.emplace_back(*left_id, *right_id);
  }
  auto built = Bpe::Build(vocabulary, merges, config.ignore_merges);
  if (!built.ok()) return built.error().WithContext("model");
  bpe = std::move(*built);
  return Status();
}

void Tokenizer::Impl::BuildAddedTokens(const TokenizerJson& config) {
  is_special.resize(vocabulary.size());
  std::vector<std::pair<std::string_view, TokenId>> first, second;
  for (const AddedToken& token : config.added_tokens) {
    is_special[token.id] = token.is_special;
    (token.is_normalized ? second : first).emplace_back(token.content, token.id);
    added_ids.emplace(vocabulary.Bytes(token.id), token.id);
  }
  first_tokens = AddedTokenTrie(first);
  second_tokens = AddedTokenTrie(second);
  auto find = [&](std::string_view content) -> std::optional<TokenId> {
    auto it = added_ids.find(content);
    return it == added_ids.end() ? std::nullopt : std::optional(it->second);
  };
  bos_id = find(kBosToken);
  eos_id = find(kEosToken);
}

Result<std::vector<TokenId>> Tokenizer::Encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kTextBytesMax) {
    return ResourceExhausted("a text of {} bytes is longer than {}", text.size(), kTextBytesMax);
  }
  EncodeState state(impl_->splits.size(), text.size());
  if (options.add_bos) {
    if (!impl_->bos_id) return InvalidArgument("the tokenizer has no added token {}", kBosToken);
    state.ids.push_back(*impl_->bos_id);
  }
  auto encode_text = [&](std::string_view stretch) { return impl_->EncodeText(stretch, &state); };
  auto second_pass = [&](std::string_view stretch) {
    return ForEachStretch(impl_->second_tokens, stretch, &state.ids, encode_text);
  };
  Status status;
  if (options.match_added_tokens) {
    status = ForEachStretch(impl_->first_tokens, text, &state.ids, second_pass);
  } else if (!text.empty()) {
    status = encode_text(text);
  }
  RETURN_IF_ERROR(status);
  return std::move(state.ids);
}

// text: not empty, without added tokens.
Status Tokenizer::Impl::EncodeText(std::string_view text, EncodeState* state) const {
  std::string with_space;
  if (add_prefix_space && text[0] != ' ') {
    with_space = " ";
    with_space += text;
    text = with_space;
  }
  // The patterns see one stretch of valid UTF-8 at a time.
  for (size_t pos = 0; pos < text.size();) {
    size_t valid = ValidUtf8Length(text, pos);
    if (valid > 0) RETURN_IF_ERROR(EncodePiece(text.substr(pos, valid), 0, state));
    pos += valid;
    size_t end = pos;
    while (end < text.size() && NextUtf8(text, end).kind != Utf8Step::kCharacter)
      end += NextUtf8(text, end).length;
    if (end > pos) bpe->Encode(text.substr(pos, end - pos), &state->bpe_scratch, &state->ids);
    pos = end;
  }
  return Status();
}

// Cuts the piece by the splits from split_idx on and encodes what comes out.
Status Tokenizer::Impl::EncodePiece(std::string_view piece, size_t split_idx, EncodeState* state) const {
  if (split_idx == splits.size()) {
    bpe->Encode(piece, &state->bpe_scratch, &state->ids);
    return Status();
  }
  std::vector<std::string_view>& pieces = state->pieces[split_idx];
  RETURN_IF_ERROR(splits[split_idx].Apply(piece, &state->split_scratch, &pieces));
  for (std::string_view smaller : pieces) RETURN_IF_ERROR(EncodePiece(smaller, split_idx + 1, state));
  return Status();
}

Result<std::string> Tokenizer::Decode(std::span<const TokenId> ids, DecodeOptions options) const {
  std::string text;
  for (TokenId id : ids) {
    ASSIGN_OR_RETURN(std::string_view bytes, TokenBytes(id));
    if (!options.skip_special || !IsSpecial(id)) text += bytes;
  }
  return text;
}

TokenId Tokenizer::vocab_size() const {
  return impl_->vocabulary.size();
}

std::optional<TokenId> Tokenizer::TokenToId(std::string_view bytes) const {
  if (auto it = impl_->added_ids.find(bytes); it != impl_->added_ids.end()) return it->second;
  return impl_->vocabulary.FindBytes(bytes);
}

Result<std::string_view> Tokenizer::TokenBytes(TokenId id) const {
  if (!impl_->vocabulary.Contains(id)) {
    return InvalidArgument("token id {} is unknown: the vocabulary has ids 0..{}", id, vocab_size() - 1);
  }
  return impl_->vocabulary.Bytes(id);
}

bool Tokenizer::IsSpecial(TokenId id) const {
  return id >= 0 && id < vocab_size() && impl_->is_special[id];
}

std::optional<TokenId> Tokenizer::bos_id() const {
  return impl_->bos_id;
}
std::optional<TokenId> Tokenizer::eos_id() const {
  return impl_->eos_id;
}

std::string Tokenizer::Description() const {
  bool is_compiled = std::all_of(impl_->splits.begin(), impl_->splits.end(),
                                 [](const Split& split) { return split.is_compiled(); });
  return fmt::format("{} patterns, {}", impl_->splits.size(), is_compiled ? "compiled" : "interpreted");
}

}  // namespace foresight
