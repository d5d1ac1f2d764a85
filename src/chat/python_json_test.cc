#include "chat/python_json.h"

#include <gtest/gtest.h>

#include <string>

namespace foresight {
namespace {

std::string Rewritten(std::string_view text) {
  const Result<std::string> json = PythonJson(text);
  return json.ok() ? *json : json.status().ToString();
}

// Expected values are what CPython's json.dumps(json.loads(text), ensure_ascii=False) prints.

TEST(PythonJson, SeparatesByCommaBlankAndColonBlank) {
  EXPECT_EQ(Rewritten(R"({"b":1,"a":[1,2,{}],"c":{"d":[]}})"),
            R"({"b": 1, "a": [1, 2, {}], "c": {"d": []}})");
  EXPECT_EQ(Rewritten(" [\n 1 ,\t2 ] "), "[1, 2]");
}

TEST(PythonJson, KeepsTheOrderOfKeysAndTheLastOfEqualOnes) {
  EXPECT_EQ(Rewritten(R"({"z":1,"a":2,"z":3})"), R"({"z": 3, "a": 2})");
}

TEST(PythonJson, KeepsWhatIsNotAscii) {
  EXPECT_EQ(Rewritten(R"({"ключ":"你好 🎉"})"), R"({"ключ": "你好 🎉"})");
  EXPECT_EQ(Rewritten(R"("\u4f60\ud83c\udf89\u00e9")"), "\"你🎉é\"");
}

TEST(PythonJson, EscapesControlCharactersQuotesAndBackslashes) {
  EXPECT_EQ(Rewritten(R"("\u0000\u001f\u007f\"\\\/\b\f\n\r\t")"),
            "\"\\u0000\\u001f\x7f\\\"\\\\/\\b\\f\\n\\r\\t\"");
}

TEST(PythonJson, WritesNumbersAsPythonDoes) {
  for (const auto& [from, to] : {std::pair("0", "0"),
                                 {"-0", "0"},
                                 {"-17", "-17"},
                                 {"123456789012345678901234567890", "123456789012345678901234567890"},
                                 {"9223372036854775808", "9223372036854775808"},
                                 {"1.0", "1.0"},
                                 {"-0.0", "-0.0"},
                                 {"1e0", "1.0"},
                                 {"0.1", "0.1"},
                                 {"1E5", "100000.0"},
                                 {"3.141592653589793", "3.141592653589793"},
                                 {"2.2250738585072014e-308", "2.2250738585072014e-308"},
                                 {"1e15", "1000000000000000.0"},
                                 {"1e16", "1e+16"},
                                 {"9999999999999998.0", "9999999999999998.0"},
                                 {"123456789.123456789", "123456789.12345679"},
                                 {"0.0001", "0.0001"},
                                 {"0.00001", "1e-05"},
                                 {"1.5e-7", "1.5e-07"},
                                 {"1e100", "1e+100"},
                                 {"5e-324", "5e-324"},
                                 {"1e400", "Infinity"},
                                 {"-1e400", "-Infinity"},
                                 {"1e-400", "0.0"},
                                 {"100.250", "100.25"}}) {
    EXPECT_EQ(Rewritten(from), to);
    EXPECT_EQ(Rewritten(fmt::format("[{}]", from)), fmt::format("[{}]", to));
  }
}

TEST(PythonJson, WritesTheOtherValues) {
  EXPECT_EQ(Rewritten("[true,false,null,\"\"]"), "[true, false, null, \"\"]");
}

TEST(PythonJson, RefusesWhatIsNotJson) {
  for (const std::string_view bad : {"", "{", "[1,]", "{\"a\":1}x", "{a:1}", "NaN", "'a'", "\"\\ud800\"",
                                     "\"\xff\"", "01", "\"a\nb\"", "// c\n1"}) {
    const Status status = PythonJson(bad).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status.message().find("at byte "), std::string::npos) << status.message();
  }
}

TEST(PythonJson, LimitsDepth) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(PythonJson(nested(kPythonJsonDepthMax)).ok());
  EXPECT_NE(PythonJson(nested(100'000)).status().message().find("64 nested levels"), std::string::npos);
}

TEST(PythonJson, MembersKeepStringsRaw) {
  const auto members = PythonJsonMembers(R"({"s":"a\n\"b\"","n":1.50,"o":{"k":"v"},"s":"é"})");
  ASSERT_TRUE(members.ok()) << members.status().ToString();
  EXPECT_EQ(*members,
            (std::vector<JsonMember>{{"s", true, "é"}, {"n", false, "1.5"}, {"o", false, R"({"k": "v"})"}}));
  EXPECT_TRUE(PythonJsonMembers("{}")->empty());
  for (const char* bad : {"[1]", "\"text\"", "1", "{", ""}) EXPECT_FALSE(PythonJsonMembers(bad).ok()) << bad;
}

}  // namespace
}  // namespace foresight
