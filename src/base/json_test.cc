#include "base/json.h"

#include <gtest/gtest.h>

#include <string>

namespace foresight {
namespace {

TEST(Json, KeepsKeyOrderAndNumbers) {
  auto value = ParseJson(R"( {"b": 1, "a": [1.5, null, "é"]} )");
  ASSERT_TRUE(value.ok()) << value.status().ToString();
  const auto& object = value->as_object();
  EXPECT_EQ(object.begin()->key(), "b");
  EXPECT_EQ(object.at("a").as_array()[0].as_double(), 1.5);
  EXPECT_EQ(object.at("a").as_array()[2].as_string(), "é");
  EXPECT_EQ(JsonKindName(object.at("a")), "an array");
}

TEST(Json, RefusesWithPlace) {
  EXPECT_EQ(ParseJson("").status().message(), "JSON: the document ends too early, at byte 0");
  EXPECT_EQ(ParseJson(R"({"a": [1, 2)").status().message(), "JSON: the document ends too early, at byte 11");
  for (const char* bad :
       {R"({"a": 01})", R"({"a": 1} x)", R"({a: 1})", "[1,]", "\xef\xbb\xbf{}", "\"\xff\"", "NaN"}) {
    Status status = ParseJson(bad).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status.message().find("at byte "), std::string::npos) << status.message();
  }
}

TEST(Json, RefusesNulAfterTheDocument) {
  EXPECT_FALSE(ParseJson(std::string_view("{}\0", 3)).ok());
}

TEST(Json, LimitsDepth) {
  auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(ParseJson(nested(64)).ok());
  Status status = ParseJson(nested(1000000)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("more than 64 nested levels"), std::string::npos) << status.message();
  EXPECT_TRUE(ParseJson(nested(100), {.depth_max = 100}).ok());
}

TEST(JsonString, ComesBack) {
  for (const std::string& text : {std::string("a \"b\" \\ \n\t\x01 é"), std::string()}) {
    const Result<boost::json::value> read = ParseJson(JsonString(text));
    ASSERT_TRUE(read.ok()) << JsonString(text);
    EXPECT_EQ(std::string(read->as_string()), text);
  }
}

}  // namespace
}  // namespace foresight
