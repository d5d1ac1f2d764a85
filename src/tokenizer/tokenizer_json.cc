#include "tokenizer/tokenizer_json.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>

#include "base/json.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/vocabulary.h"

namespace foresight {
namespace {

namespace json = boost::json;

// The expression of GPT-2, which ByteLevel applies itself when use_regex is set.
constexpr std::string_view kByteLevelRegex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string_view View(const json::string& string) {
  return {string.data(), string.size()};
}

// A field that is missing or null reads as nullptr.
const json::value* Find(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_null() ? nullptr : value;
}

Status WrongKind(std::string_view where, std::string_view want, const json::value* value) {
  return InvalidArgument("{}: want {}, got {}", where, want,
                         value == nullptr ? "nothing" : JsonKindName(*value));
}

Result<const json::object*> AsObject(std::string_view where, const json::value* value) {
  if (value == nullptr || !value->is_object()) return WrongKind(where, "an object", value);
  return &value->get_object();
}

Result<const json::array*> AsArray(std::string_view where, const json::value* value) {
  if (value == nullptr || !value->is_array()) return WrongKind(where, "an array", value);
  return &value->get_array();
}

Result<std::string_view> AsString(std::string_view where, const json::value* value) {
  if (value == nullptr || !value->is_string()) return WrongKind(where, "a string", value);
  return View(value->get_string());
}

Result<bool> AsBool(std::string_view where, const json::value* value, bool if_missing) {
  if (value == nullptr) return if_missing;
  if (!value->is_bool()) return WrongKind(where, "a boolean", value);
  return value->get_bool();
}

Result<TokenId> AsId(std::string_view where, const json::value* value) {
  if (value == nullptr || !value->is_int64()) return WrongKind(where, "an id", value);
  int64_t id = value->get_int64();
  if (id < 0 || id > Vocabulary::kIdMax) {
    return InvalidArgument("{}: id {} is outside 0..{}", where, id, Vocabulary::kIdMax);
  }
  return static_cast<TokenId>(id);
}

Status RefuseIfSet(std::string_view where, const json::object& object, std::string_view key) {
  const json::value* value = Find(object, key);
  if (value == nullptr) return Status();
  if (value->is_bool() && !value->get_bool()) return Status();
  if (value->is_string() && value->get_string().empty()) return Status();
  if (value->is_number() && value->to_number<double>() == 0) return Status();
  return Unimplemented("{}.{} is not supported", where, key);
}

Status ReadModel(const json::object& document, TokenizerJson* result) {
  ASSIGN_OR_RETURN(const json::object* model, AsObject("model", Find(document, "model")));
  ASSIGN_OR_RETURN(std::string_view type, AsString("model.type", Find(*model, "type")));
  if (type != "BPE") return Unimplemented("model.type: want BPE, got {}", type);
  // unk_token, fuse_unk and byte_fallback say what to do about an unknown character: with an entry for each
  // byte, which is checked, there is none.
  for (std::string_view key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    RETURN_IF_ERROR(RefuseIfSet("model", *model, key));
  }
  ASSIGN_OR_RETURN(result->ignore_merges,
                   AsBool("model.ignore_merges", Find(*model, "ignore_merges"), false));

  ASSIGN_OR_RETURN(const json::object* vocab, AsObject("model.vocab", Find(*model, "vocab")));
  result->vocab.reserve(vocab->size());
  for (const auto& entry : *vocab) {
    auto id = AsId("model.vocab", &entry.value());
    if (!id.ok())
      return Status(id.error().code(), fmt::format("{} (entry '{}')", id.error().message(), entry.key()));
    result->vocab.emplace_back(entry.key(), *id);
  }

  ASSIGN_OR_RETURN(const json::array* merges, AsArray("model.merges", Find(*model, "merges")));
  result->merges.reserve(merges->size());
  for (const json::value& merge : *merges) {
    size_t rank = result->merges.size();
    if (const json::array* pair = merge.if_array()) {
      if (pair->size() != 2 || !(*pair)[0].is_string() || !(*pair)[1].is_string()) {
        return InvalidArgument("model.merges[{}]: want an array of two strings", rank);
      }
      result->merges.emplace_back(View((*pair)[0].get_string()), View((*pair)[1].get_string()));
    } else if (merge.is_string()) {
      std::string_view both = View(merge.get_string());
      size_t space = both.find(' ');
      if (space == both.npos || both.find(' ', space + 1) != both.npos) {
        return InvalidArgument("model.merges[{}]: want two spellings with one space between, got '{}'", rank,
                               both);
      }
      result->merges.emplace_back(both.substr(0, space), both.substr(space + 1));
    } else {
      return WrongKind(fmt::format("model.merges[{}]", rank), "a string or an array of two", &merge);
    }
  }
  return Status();
}

Status ReadAddedTokens(const json::object& document, TokenizerJson* result) {
  const json::value* value = Find(document, "added_tokens");
  if (value == nullptr) return Status();
  ASSIGN_OR_RETURN(const json::array* tokens, AsArray("added_tokens", value));
  for (const json::value& element : *tokens) {
    std::string where = fmt::format("added_tokens[{}]", result->added_tokens.size());
    ASSIGN_OR_RETURN(const json::object* token, AsObject(where, &element));
    AddedToken added;
    ASSIGN_OR_RETURN(added.id, AsId(where + ".id", Find(*token, "id")));
    ASSIGN_OR_RETURN(added.content, AsString(where + ".content", Find(*token, "content")));
    if (added.content.empty() || added.content.size() > AddedTokenTrie::kContentBytesMax) {
      return InvalidArgument("{}.content: want 1 to {} bytes, got {}", where,
                             AddedTokenTrie::kContentBytesMax, added.content.size());
    }
    for (std::string_view key : {"lstrip", "rstrip", "single_word"}) {
      RETURN_IF_ERROR(RefuseIfSet(fmt::format("{} ('{}')", where, added.content), *token, key));
    }
    ASSIGN_OR_RETURN(added.is_special, AsBool(where + ".special", Find(*token, "special"), false));
    ASSIGN_OR_RETURN(added.is_normalized,
                     AsBool(where + ".normalized", Find(*token, "normalized"), !added.is_special));
    result->added_tokens.push_back(added);
  }
  return Status();
}

// Calls read(where, type, object) for each step of a normalizer, pre-tokenizer or decoder, Sequences
// unfolded.
template <typename Read>
Status ForEachStep(const std::string& where, std::string_view list_key, const json::value* value,
                   const Read& read) {
  if (value == nullptr) return Status();
  ASSIGN_OR_RETURN(const json::object* object, AsObject(where, value));
  ASSIGN_OR_RETURN(std::string_view type, AsString(where + ".type", Find(*object, "type")));
  if (type != "Sequence") return read(where, type, *object);
  std::string list_name = fmt::format("{}.{}", where, list_key);
  ASSIGN_OR_RETURN(const json::array* list, AsArray(list_name, Find(*object, list_key)));
  for (size_t i = 0; i < list->size(); ++i) {
    RETURN_IF_ERROR(ForEachStep(fmt::format("{}[{}]", list_name, i), list_key, &(*list)[i], read));
  }
  return Status();
}

Result<SplitBehavior> ReadBehavior(std::string_view where, std::string_view name) {
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return InvalidArgument(
      "{}.behavior: want Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous, got {}", where,
      name);
}

Result<SplitConfig> ReadSplit(const std::string& where, const json::object& step) {
  SplitConfig split;
  ASSIGN_OR_RETURN(const json::object* pattern, AsObject(where + ".pattern", Find(step, "pattern")));
  split.is_literal = Find(*pattern, "String") != nullptr;
  std::string_view kind = split.is_literal ? "String" : "Regex";
  ASSIGN_OR_RETURN(split.pattern, AsString(fmt::format("{}.pattern.{}", where, kind), Find(*pattern, kind)));
  ASSIGN_OR_RETURN(std::string_view behavior, AsString(where + ".behavior", Find(step, "behavior")));
  ASSIGN_OR_RETURN(split.behavior, ReadBehavior(where, behavior));
  ASSIGN_OR_RETURN(split.invert, AsBool(where + ".invert", Find(step, "invert"), false));
  return split;
}

Status ReadPreTokenizer(const json::object& document, TokenizerJson* result) {
  bool has_byte_level = false;
  auto read = [&](const std::string& where, std::string_view type, const json::object& step) -> Status {
    if (has_byte_level) return Unimplemented("{}: a {} step after ByteLevel is not supported", where, type);
    if (type == "Split") {
      ASSIGN_OR_RETURN(SplitConfig split, ReadSplit(where, step));
      result->splits.push_back(std::move(split));
      return Status();
    }
    if (type != "ByteLevel") return Unimplemented("{}.type: {} is not supported", where, type);
    has_byte_level = true;
    ASSIGN_OR_RETURN(result->add_prefix_space,
                     AsBool(where + ".add_prefix_space", Find(step, "add_prefix_space"), true));
    if (result->add_prefix_space && !result->splits.empty()) {
      return Unimplemented("{}.add_prefix_space after a Split is not supported", where);
    }
    ASSIGN_OR_RETURN(bool use_regex, AsBool(where + ".use_regex", Find(step, "use_regex"), true));
    if (use_regex) result->splits.push_back({.pattern = std::string(kByteLevelRegex)});
    return Status();
  };
  RETURN_IF_ERROR(ForEachStep("pre_tokenizer", "pretokenizers", Find(document, "pre_tokenizer"), read));
  if (!has_byte_level) return Unimplemented("pre_tokenizer: want ByteLevel as its last step, it has none");
  return Status();
}

}  // namespace

Result<TokenizerJson> ReadTokenizerJson(const json::value& document) {
  ASSIGN_OR_RETURN(const json::object* object, AsObject("the document", &document));
  for (std::string_view key : {"truncation", "padding"}) {
    RETURN_IF_ERROR(RefuseIfSet("the document", *object, key));
  }
  auto refuse_normalizer = [](const std::string& where, std::string_view type, const json::object&) {
    return Unimplemented("{}.type: {} is not supported", where, type);
  };
  RETURN_IF_ERROR(ForEachStep("normalizer", "normalizers", Find(*object, "normalizer"), refuse_normalizer));
  auto check_decoder = [](const std::string& where, std::string_view type, const json::object&) {
    return type == "ByteLevel" ? Status() : Unimplemented("{}.type: want ByteLevel, got {}", where, type);
  };
  RETURN_IF_ERROR(ForEachStep("decoder", "decoders", Find(*object, "decoder"), check_decoder));

  TokenizerJson result;
  RETURN_IF_ERROR(ReadModel(*object, &result));
  RETURN_IF_ERROR(ReadAddedTokens(*object, &result));
  RETURN_IF_ERROR(ReadPreTokenizer(*object, &result));
  return result;
}

}  // namespace foresight
