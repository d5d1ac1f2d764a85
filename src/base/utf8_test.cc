#include "base/utf8.h"

#include <gtest/gtest.h>

namespace foresight {
namespace {

TEST(Utf8, EveryCodePointSurvives) {
  std::string all;
  for (char32_t c = 0; c <= 0x10ffff; ++c) {
    if (c < 0xd800 || c >= 0xe000) AppendUtf8(c, &all);
  }
  EXPECT_EQ(ValidUtf8Length(all, 0), all.size());
  size_t pos = 0;
  for (char32_t c = 0; c <= 0x10ffff; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    Utf8Step step = NextUtf8(all, pos);
    ASSERT_EQ(step.kind, Utf8Step::kCharacter) << static_cast<uint32_t>(c);
    ASSERT_EQ(step.code_point, c);
    pos += step.length;
  }
  EXPECT_EQ(pos, all.size());
}

TEST(Utf8, ControlCharactersAreNotForTerminals) {
  for (const std::string_view text : {"\x1b[2J", "a\nb", "\x7f", "\xc2\x9b[2J", "é\xc2\x80"}) {
    EXPECT_TRUE(HasControlCharacters(text)) << text;
  }
  for (const std::string_view text : {"", "layers.0", "é\xc2\xa0", "你好", "\xff\x9b"}) {
    EXPECT_FALSE(HasControlCharacters(text)) << text;
    EXPECT_EQ(WithoutControlCharacters(text), text);
  }
  EXPECT_EQ(WithoutControlCharacters("a\x1b[2J\xc2\x9b\n\x7fé\xff"), "a?[2J?\n?é\xff");
}

TEST(Utf8, InvalidSequencesGiveMaximalSubparts) {
  struct Case {
    std::string_view bytes;
    Utf8Step::Kind kind;
    int length;
  };
  for (const Case& c : {Case{"\x80", Utf8Step::kInvalid, 1},              // a stray continuation
                        Case{"\xc0\xaf", Utf8Step::kInvalid, 1},          // overlong
                        Case{"\xe0\x9f\xbf", Utf8Step::kInvalid, 1},      // overlong
                        Case{"\xed\xa0\x80", Utf8Step::kInvalid, 1},      // a surrogate
                        Case{"\xf4\x90\x80\x80", Utf8Step::kInvalid, 1},  // above U+10FFFF
                        Case{"\xf5", Utf8Step::kInvalid, 1},              // no such lead
                        Case{"\xf0\x9f\x98z", Utf8Step::kInvalid, 3},     // three bytes of four, then text
                        Case{"\xe4\xbdz", Utf8Step::kInvalid, 2},         //
                        Case{"\xf0\x9f\x98", Utf8Step::kTruncated, 3},    // may go on
                        Case{"\xc3", Utf8Step::kTruncated, 1},            //
                        Case{"\xf0\x9f\x98\x80z", Utf8Step::kCharacter, 4}})  //
  {
    Utf8Step step = NextUtf8(c.bytes, 0);
    EXPECT_EQ(step.kind, c.kind) << testing::PrintToString(c.bytes);
    EXPECT_EQ(step.length, c.length) << testing::PrintToString(c.bytes);
  }
  EXPECT_EQ(ValidUtf8Length("0123456789\xffz", 1), 9u);
}

}  // namespace
}  // namespace foresight
