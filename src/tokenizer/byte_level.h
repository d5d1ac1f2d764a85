// The alphabet in which a byte-level BPE vocabulary is written down: each of the 256 bytes has one printable
// character, so that " the" is spelled "Ġthe" (deepseek-v4-model.md 5.1; the map is GPT-2's).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace foresight {

// The bytes that a spelling stands for; nothing when a character of it is outside the alphabet.
std::optional<std::string> BytesFromSpelling(std::string_view spelling);

// The character of one byte, in UTF-8.
std::string SpellingOfByte(uint8_t byte);

}  // namespace foresight
