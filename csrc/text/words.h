// Where a text is cut into words before byte-level BPE merges them: regular expressions as automata over classes of
// characters. Both are data (glmlite/tokenizer/automata.py makes them), so that no table of Unicode is needed here.
#pragma once
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace glmlite {

class Words {
 public:
  // classes: code point << 8 | class, ascending: each range of characters has its first one's class, 0 to `count` - 1.
  // automata: the number of patterns (at most 16), then of each
  //     its number of states; state 0 has no row: nothing matches any more
  //     count + 1 states to begin in, by the class of the character before; the last: there is none
  //     for each state but 0, count + 1 steps, by the class of the next character; the last: there is none
  // A step is 2 * the state after the character, + 1 if what has been read before it is a match. The last match counts.
  // Throws FormatError for anything else.
  Words(const std::vector<uint32_t>& classes, const std::vector<int32_t>& automata);

  // Calls `word` for each word of `text`, which is UTF-8, in order. The patterns are applied one after another: every
  // match, and what lies between two, is a word, or a text for the next pattern. Any number of threads may call it.
  // Throws FormatError for automata that take more than 16 steps a byte, which no automaton of PATTERNS does.
  void cut(std::string_view text, const std::function<void(std::string_view)>& word) const;

 private:
  struct Automaton {
    std::vector<int32_t> starts, steps;
  };
  struct Call;

  uint8_t class_of(uint32_t code) const { return blocks_[size_t{pages_[code >> 8]} << 8 | (code & 0xFF)]; }
  size_t match(const Automaton& automaton, std::string_view text, size_t at, uint64_t& steps) const;
  void cut(std::string_view text, size_t pattern, Call& call) const;

  size_t symbols_;               // classes, and one for the text's end
  std::vector<uint16_t> pages_;  // of 256 characters each: its block
  std::vector<uint8_t> blocks_;  // a class for each character; equal blocks are there once
  std::vector<Automaton> automata_;
};

}  // namespace glmlite
