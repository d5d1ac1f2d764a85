#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>

#include "base/check.h"
#include "base/json.h"
#include "tokenizer/streaming_decoder.h"

namespace foresight {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Tokenizer LoadTokenizer(const std::string& path) {
  Result<Tokenizer> tokenizer = Tokenizer::Load(ReadFile(path));
  CHECK(tokenizer.ok(), "{}", tokenizer.status().ToString());
  return std::move(*tokenizer);
}

const Tokenizer& Mini() {
  static const Tokenizer* tokenizer = new Tokenizer(LoadTokenizer("models/foresight-mini/tokenizer.json"));
  return *tokenizer;
}

std::vector<TokenId> Ids(const boost::json::value& array) {
  std::vector<TokenId> ids;
  for (const boost::json::value& id : array.as_array()) ids.push_back(static_cast<TokenId>(id.as_int64()));
  return ids;
}

// 288 cases on which two other implementations agree; DeepSeek's own tokenizer.json is not part of the
// repository.
TEST(Tokenizer, EqualsTheOracleOnDeepSeeksTokenizer) {
  const std::string folder = "../shared/tokenizer/";
  if (!std::filesystem::exists(folder + "oracle.json")) GTEST_SKIP() << folder << " is not here";
  const Tokenizer tokenizer = LoadTokenizer(folder + "tokenizer.json");
  const std::string text = ReadFile(folder + "oracle.json");
  Result<boost::json::value> oracle = ParseJson(text);
  ASSERT_TRUE(oracle.ok()) << oracle.status().ToString();
  const boost::json::value& cases = oracle->is_object() ? oracle->as_object().at("cases") : *oracle;
  ASSERT_EQ(cases.as_array().size(), 288u);
  for (const boost::json::value& c : cases.as_array()) {
    const std::string_view input = c.at("text").as_string();
    const Result<std::vector<TokenId>> ids = tokenizer.Encode(input);
    ASSERT_TRUE(ids.ok()) << ids.status().ToString();
    EXPECT_EQ(*ids, Ids(c.at("ids"))) << input;
    EXPECT_EQ(*tokenizer.Decode(*ids), input);
  }
}

// Ids that another implementation made with the embedded model's tokenizer.
TEST(Tokenizer, EqualsTheRecordedIdsOfTheEmbeddedModel) {
  const std::string text = ReadFile("recipes/expected/foresight-mini.json");
  Result<boost::json::value> cases = ParseJson(text);
  ASSERT_TRUE(cases.ok()) << cases.status().ToString();
  ASSERT_FALSE(cases->as_array().empty());
  for (const boost::json::value& c : cases->as_array()) {
    EXPECT_EQ(*Mini().Encode(c.at("prompt").as_string(), {.add_bos = true}), Ids(c.at("ids")));
    EXPECT_EQ(*Mini().Decode(Ids(c.at("greedy_ids"))), std::string_view(c.at("greedy_text").as_string()));
  }
}

TEST(Tokenizer, AnyBytesComeBack) {
  std::mt19937 rng(1);
  for (int round = 0; round < 300; ++round) {
    std::string text(rng() % 60, ' ');
    for (char& c : text)
      c = static_cast<char>(round % 3 == 0 ? rng() : rng() % 4 == 0 ? rng() % 256 : ' ' + rng() % 95);
    const Result<std::vector<TokenId>> ids = Mini().Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status().ToString();
    EXPECT_EQ(*Mini().Decode(*ids), text);
  }
  const std::string nul("a\0b", 3);
  EXPECT_EQ(*Mini().Decode(*Mini().Encode(nul)), nul);
}

TEST(Tokenizer, AddedTokensAreMatchedWhenAsked) {
  EXPECT_EQ(Mini().Encode("<｜User｜>")->size(), 1u);
  EXPECT_GT(Mini().Encode("<｜User｜>", {.match_added_tokens = false})->size(), 1u);
  EXPECT_EQ(Mini().Encode("", {.add_bos = true})->front(), *Mini().bos_id());
  EXPECT_TRUE(Mini().Encode("")->empty());
}

// Time grows with the length and not with its square: a quadratic merge would take minutes here.
TEST(Tokenizer, LongRunsOfOneCharacter) {
  for (const char c : {'a', ' ', '7', '\n', '!'}) {
    const std::string text(1 << 20, c);
    const Result<std::vector<TokenId>> ids = Mini().Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status().ToString();
    EXPECT_EQ(*Mini().Decode(*ids), text);
  }
}

TEST(Tokenizer, DamagedFilesAreErrors) {
  const std::string good = ReadFile("models/foresight-mini/tokenizer.json");
  for (size_t length : {size_t{0}, size_t{1}, size_t{100}, good.size() / 2, good.size() - 2}) {
    EXPECT_FALSE(Tokenizer::Load(std::string_view(good).substr(0, length)).ok()) << length;
  }
  for (const char* bad :
       {"{}", "[]", "null", R"({"model": {}})", R"({"model": {"type": "WordPiece", "vocab": {}}})",
        R"({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}})",
        R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}})"}) {
    const Result<Tokenizer> tokenizer = Tokenizer::Load(bad);
    ASSERT_FALSE(tokenizer.ok()) << bad;
    EXPECT_FALSE(tokenizer.status().message().empty());
  }
  const TokenId out_of_range[] = {Mini().vocab_size()};
  EXPECT_FALSE(Mini().Decode(out_of_range).ok());
  const TokenId negative[] = {-1};
  EXPECT_FALSE(Mini().Decode(negative).ok());
}

// One thing at a time is wrong with the embedded model's file; the message says what.
TEST(Tokenizer, WhatItCanNotDoIsRefusedByName) {
  const std::string good = ReadFile("models/foresight-mini/tokenizer.json");
  struct Case {
    std::string_view from, to, words;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"\"normalizers\": []", "\"normalizers\": [{\"type\": \"NFC\"}]",
            "normalizer.normalizers[0].type: NFC"},
           {"\"lstrip\": false", "\"lstrip\": true", "added_tokens[0]"},
           {"\"id\": 1,", "\"id\": 0,",
            "'<｜end▁of▁sentence｜>' has id 1 in model.vocab and 0 in added_tokens"},
           {"\"id\": 8150,", "\"id\": -1,", "id -1 is outside"},
           {"\"id\": 8150,", "\"id\": 4194304,", "id 4194304 is outside"},
           {"\"id\": 8150,", "\"id\": 8149,", "id 8149 is given twice"},
           {"\"id\": 8150,", "\"id\": \"x\",", "added_tokens[3].id: want an id, got a string"},
           {"\"<｜▁pad▁｜>\",\n   \"single", "\"\",\n   \"single", "added_tokens[2].content: want 1 to"},
           {"\"\\\\p{N}{1,3}\"", "\"(\"", "pre_tokenizer: pattern 0"},
           {"\"\\\\p{N}{1,3}\"", "\"\\\\p{N}*\"", "pre_tokenizer: pattern 0"},
           {"\"\\\\p{N}{1,3}\"", "\"\\\\K\"", "pre_tokenizer: pattern 0"},
           {"\"Isolated\"", "\"Isolate\"", "behavior: want Isolated, Removed"},
           {"\"type\": \"ByteLevel\",\n    \"add", "\"type\": \"Metaspace\",\n    \"add",
            "Metaspace is not supported"},
           {"\"dropout\": null", "\"dropout\": 0.1", "model.dropout is not supported"},
           {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "model.type: want BPE, got Unigram"},
           {"\"!\": 3,", "", "'!' is not in model.vocab"},
           {"\"#\": 5", "\"#\": 4", "id 4 is given twice"},
           {"\"Ġ Ġ\"", "\"ĠĠ\"", "model.merges[0]: want two spellings"},
           {"\"Ġ Ġ\"", "\"Ġ Ġno\"", "merge 0"},
           {"\"Ġ Ġ\"", "[\"Ġ\"]", "model.merges[0]: want an array of two strings"},
           {"\"Ġ Ġ\"", "7", "model.merges[0]: want a string or an array of two"},
           {"\"version\": \"1.0\"", "\"version\": \"\xff\"", "at byte "},
       }) {
    std::string json = good;
    const size_t at = json.find(c.from);
    ASSERT_NE(at, std::string::npos) << c.from;
    json.replace(at, c.from.size(), c.to);
    const Status status = Tokenizer::Load(json).status();
    EXPECT_FALSE(status.ok()) << c.to;
    EXPECT_NE(status.message().find(c.words), std::string::npos) << c.words << "\n" << status.ToString();
  }
}

// A pattern whose time grows exponentially ends in an error, not in a program that hangs.
TEST(Tokenizer, AnEndlessPatternIsStopped) {
  std::string json = ReadFile("models/foresight-mini/tokenizer.json");
  const std::string_view pattern = "\"\\\\p{N}{1,3}\"";
  json.replace(json.find(pattern), pattern.size(), "\"(a+)+[bc]\"");
  const Result<Tokenizer> tokenizer = Tokenizer::Load(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  EXPECT_EQ(tokenizer->Encode(std::string(100'000, 'a')).status().code(), StatusCode::kResourceExhausted);
}

TEST(StreamingDecoder, NeverSplitsACharacter) {
  const std::string text = "naïve 你好 🙂 résumé";
  StreamingDecoder decoder(Mini());
  std::string joined;
  const std::vector<TokenId> ids = *Mini().Encode(text);
  for (TokenId id : ids) {
    const Result<std::string> piece = decoder.Push(id);
    ASSERT_TRUE(piece.ok());
    EXPECT_EQ(ReplaceInvalidUtf8(*piece), *piece);
    joined += *piece;
  }
  joined += decoder.Finish();
  EXPECT_EQ(joined, text);
}

TEST(StreamingDecoder, WhatCanNotBecomeACharacterIsReplaced) {
  StreamingDecoder decoder(Mini());
  std::string joined;
  const std::vector<TokenId> ids = *Mini().Encode("a\xe4\xbd");
  for (TokenId id : ids) joined += *decoder.Push(id);
  EXPECT_EQ(joined, "a");
  EXPECT_EQ(decoder.Finish(), "\xef\xbf\xbd");
}

}  // namespace
}  // namespace foresight
