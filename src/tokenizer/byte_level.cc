#include "tokenizer/byte_level.h"

#include <array>

#include "base/utf8.h"

namespace foresight {
namespace {

// Printable Latin-1 characters stand for themselves; the 68 other bytes take the code points from 256 on, in
// order.
constexpr int kNumShifted = 68;

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<char32_t, 256> character_of_byte{};
  std::array<int16_t, 256 + kNumShifted> byte_of_character{};  // -1: not in the alphabet
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  alphabet.byte_of_character.fill(-1);
  char32_t shifted = 256;
  for (int byte = 0; byte < 256; ++byte) {
    char32_t character = StandsForItself(byte) ? static_cast<char32_t>(byte) : shifted++;
    alphabet.character_of_byte[byte] = character;
    alphabet.byte_of_character[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}
constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::optional<std::string> BytesFromSpelling(std::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  for (size_t pos = 0; pos < spelling.size();) {
    Utf8Step step = NextUtf8(spelling, pos);
    if (step.kind != Utf8Step::kCharacter || step.code_point >= kAlphabet.byte_of_character.size())
      return std::nullopt;
    int byte = kAlphabet.byte_of_character[step.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    pos += step.length;
  }
  return bytes;
}

std::string SpellingOfByte(uint8_t byte) {
  std::string spelling;
  AppendUtf8(kAlphabet.character_of_byte[byte], &spelling);
  return spelling;
}

}  // namespace foresight
