// UTF-8, one character at a time: what validation, splitting and streaming need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace foresight {

// One step through bytes that may or may not be UTF-8.
struct Utf8Step {
  enum Kind {
    kCharacter,  // `length` bytes spell `code_point`
    kInvalid,    // `length` bytes can't begin any character: the maximal subpart that one U+FFFD stands for
    kTruncated,  // the text ends inside what may still become a character; `length` bytes are there
  };
  Kind kind;
  uint8_t length;       // 1..4
  char32_t code_point;  // of kCharacter
};

// Reads at text[pos]; pos < text.size(). Overlong forms, surrogates and values above U+10FFFF are kInvalid.
Utf8Step NextUtf8(std::string_view text, size_t pos);

// The length of the longest prefix of text[pos..] that is whole UTF-8 characters.
size_t ValidUtf8Length(std::string_view text, size_t pos);

// Whether there is a character that a terminal obeys instead of showing it (U+0000 to U+001F, U+007F to
// U+009F). Names that come out of files are shown to people.
bool HasControlCharacters(std::string_view text);
// The same text with a question mark for each of them but the line feed.
std::string WithoutControlCharacters(std::string_view text);

// Appends the UTF-8 form of a code point (at most U+10FFFF, not a surrogate).
void AppendUtf8(char32_t code_point, std::string* out);

// U+FFFD, which stands for bytes that are not UTF-8.
inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

}  // namespace foresight
