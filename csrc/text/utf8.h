// Characters of UTF-8.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace glmlite {

struct Character {
  enum class State { kWhole, kCut, kBroken };  // kCut: the text ends in what could have become one
  uint32_t code;                               // U+FFFD if it is not whole
  uint32_t bytes;                              // if it is not whole, of the longest beginning of one; at least 1
  State state;
};

constexpr uint32_t kReplacement = 0xFFFD;
constexpr std::string_view kReplacementText = "\xEF\xBF\xBD";

// What stands at text[at].
inline Character character(std::string_view text, size_t at) {
  using State = Character::State;
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80) return {first, 1, State::kWhole};
  if (first < 0xC2 || first > 0xF4) return {kReplacement, 1, State::kBroken};
  const uint32_t size = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // A second byte that would make an overlong form, a surrogate or more than U+10FFFF is none.
  const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  uint32_t code = first & (0x7Fu >> size);
  for (uint32_t i = 1; i < size; ++i) {
    if (at + i == text.size()) return {kReplacement, i, State::kCut};
    const auto byte = static_cast<unsigned char>(text[at + i]);
    if (byte < (i == 1 ? low : 0x80) || byte > (i == 1 ? high : 0xBF)) return {kReplacement, i, State::kBroken};
    code = code << 6 | (byte & 0x3Fu);
  }
  return {code, size, State::kWhole};
}

// Where the first character begins that is not whole; the text's size if it is all UTF-8.
inline size_t first_broken(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Character c = character(text, at);
    if (c.state != Character::State::kWhole) break;
    at += c.bytes;
  }
  return at;
}

// `text` with U+FFFD for each longest beginning of a character that is not whole, as Unicode recommends.
inline std::string replaced(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Character c = character(text, at);
    out.append(c.state == Character::State::kWhole ? text.substr(at, c.bytes) : kReplacementText);
    at += c.bytes;
  }
  return out;
}

}  // namespace glmlite
