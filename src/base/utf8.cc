#include "base/utf8.h"

#include <cstring>

#include "base/check.h"

namespace foresight {
namespace {

bool IsControlCharacter(const Utf8Step& step) {
  return step.kind == Utf8Step::kCharacter &&
         (step.code_point < 0x20 || (step.code_point >= 0x7f && step.code_point < 0xa0));
}

}  // namespace

Utf8Step NextUtf8(std::string_view text, size_t pos) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[pos + i]); };
  uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Step::kCharacter, 1, lead};

  uint8_t length;
  uint8_t second_min = 0x80, second_max = 0xbf;  // narrower after E0, ED, F0 and F4 (Unicode table 3-7)
  char32_t code_point;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
    code_point = lead & 0x1f;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    code_point = lead & 0x0f;
    if (lead == 0xe0) second_min = 0xa0;
    if (lead == 0xed) second_max = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    code_point = lead & 0x07;
    if (lead == 0xf0) second_min = 0x90;
    if (lead == 0xf4) second_max = 0x8f;
  } else {
    return {Utf8Step::kInvalid, 1, 0};
  }
  for (uint8_t i = 1; i < length; ++i) {
    if (pos + i == text.size()) return {Utf8Step::kTruncated, i, 0};
    uint8_t min = i == 1 ? second_min : 0x80, max = i == 1 ? second_max : 0xbf;
    if (byte(i) < min || byte(i) > max) return {Utf8Step::kInvalid, i, 0};
    code_point = code_point << 6 | (byte(i) & 0x3f);
  }
  return {Utf8Step::kCharacter, length, code_point};
}

size_t ValidUtf8Length(std::string_view text, size_t pos) {
  const size_t begin = pos;
  while (pos < text.size()) {
    uint64_t word;
    if (pos + sizeof(word) <= text.size()) {  // eight ASCII characters at a time
      std::memcpy(&word, text.data() + pos, sizeof(word));
      if ((word & 0x8080808080808080) == 0) {
        pos += sizeof(word);
        continue;
      }
    }
    Utf8Step step = NextUtf8(text, pos);
    if (step.kind != Utf8Step::kCharacter) break;
    pos += step.length;
  }
  return pos - begin;
}

bool HasControlCharacters(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = NextUtf8(text, pos);
    if (IsControlCharacter(step)) return true;
    pos += step.length;
  }
  return false;
}

std::string WithoutControlCharacters(std::string_view text) {
  std::string shown;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = NextUtf8(text, pos);
    if (IsControlCharacter(step) && step.code_point != '\n') {
      shown += '?';
    } else {
      shown += text.substr(pos, step.length);
    }
    pos += step.length;
  }
  return shown;
}

void AppendUtf8(char32_t code_point, std::string* out) {
  CHECK(code_point <= 0x10ffff && !(code_point >= 0xd800 && code_point < 0xe000), "no character: {:x}",
        static_cast<uint32_t>(code_point));
  auto tail = [&](int shift) { out->push_back(static_cast<char>(0x80 | (code_point >> shift & 0x3f))); };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xc0 | code_point >> 6));
    tail(0);
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | code_point >> 12));
    tail(6);
    tail(0);
  } else {
    out->push_back(static_cast<char>(0xf0 | code_point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace foresight
