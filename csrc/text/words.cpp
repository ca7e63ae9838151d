#include "text/words.h"

#include <algorithm>
#include <map>
#include <string>

#include "errors.h"
#include "text/utf8.h"

namespace glmlite {

namespace {

constexpr uint32_t kCharacters = 0x110000;
constexpr size_t kMostPatterns = 16;
constexpr uint64_t kMostSteps = 16;  // a byte, of each pattern

void require(bool ok, const char* key, const std::string& what) {
  if (!ok) throw FormatError(std::string("glmlite.text.") + key + ": " + what);
}

}  // namespace

struct Words::Call {
  const std::function<void(std::string_view)>& word;
  uint64_t steps;  // that are left
};

Words::Words(const std::vector<uint32_t>& classes, const std::vector<int32_t>& automata) {
  require(!classes.empty() && classes[0] >> 8 == 0, "classes", "no class of U+0000");
  uint32_t last = 0;
  std::map<std::string, uint16_t> known;
  std::string block;
  for (size_t i = 0; i < classes.size(); ++i) {
    const uint32_t begin = classes[i] >> 8, end = i + 1 < classes.size() ? classes[i + 1] >> 8 : kCharacters;
    require(begin < end && end <= kCharacters, "classes", "range " + std::to_string(i) + " is empty or no character's");
    last = std::max(last, classes[i] & 0xFF);
    for (uint32_t code = begin; code < end;) {
      const uint32_t stop = std::min(end, (code | 0xFF) + 1);
      block.append(stop - code, static_cast<char>(classes[i] & 0xFF));
      code = stop;
      if (code % 256 != 0) continue;
      const auto [at, added] = known.emplace(block, static_cast<uint16_t>(known.size()));
      if (added) blocks_.insert(blocks_.end(), block.begin(), block.end());
      pages_.push_back(at->second);
      block.clear();
    }
  }
  symbols_ = last + 2;

  size_t at = 0;
  const auto take = [&](size_t count) {
    require(count <= automata.size() - at, "words", "shorter than it says");
    const auto begin = automata.begin() + static_cast<std::ptrdiff_t>(at);
    at += count;
    return std::vector<int32_t>(begin, begin + static_cast<std::ptrdiff_t>(count));
  };
  const int32_t patterns = take(1)[0];
  require(patterns >= 0 && patterns <= static_cast<int32_t>(kMostPatterns), "words",
          std::to_string(patterns) + " patterns, expected at most " + std::to_string(kMostPatterns));
  for (int32_t i = 0; i < patterns; ++i) {
    const int32_t states = take(1)[0];
    require(states >= 1 && static_cast<size_t>(states) <= automata.size(), "words",
            "pattern " + std::to_string(i) + " has " + std::to_string(states) + " states");
    Automaton automaton{take(symbols_), take(symbols_ * (static_cast<size_t>(states) - 1))};
    const auto inside = [&](int32_t state) { return state >= 0 && state < states; };
    require(std::all_of(automaton.starts.begin(), automaton.starts.end(), inside) &&
                std::all_of(automaton.steps.begin(), automaton.steps.end(), [&](int32_t s) { return inside(s >> 1); }),
            "words", "pattern " + std::to_string(i) + " leads to a state that it does not have");
    automata_.push_back(std::move(automaton));
  }
  require(at == automata.size(), "words", "longer than it says");
}

void Words::cut(std::string_view text, const std::function<void(std::string_view)>& word) const {
  Call call{word, kMostSteps * automata_.size() * (text.size() + 64)};
  if (!text.empty()) cut(text, 0, call);
}

void Words::cut(std::string_view text, size_t pattern, Call& call) const {
  if (pattern == automata_.size()) return call.word(text);
  size_t begin = 0, at = 0;
  while (at < text.size()) {
    const size_t end = match(automata_[pattern], text, at, call.steps);
    if (end == at) {
      at += character(text, at).bytes;
      continue;
    }
    if (begin < at) cut(text.substr(begin, at - begin), pattern + 1, call);
    cut(text.substr(at, end - at), pattern + 1, call);
    begin = at = end;
  }
  if (begin < at) cut(text.substr(begin), pattern + 1, call);
}

// Where the match at text[at] ends; `at` if there is none.
size_t Words::match(const Automaton& automaton, std::string_view text, size_t at, uint64_t& steps) const {
  size_t before = symbols_ - 1, end = at;
  if (at > 0) {
    size_t previous = at - 1;
    while (previous > 0 && (text[previous] & 0xC0) == 0x80) --previous;
    before = class_of(character(text, previous).code);
  }
  auto state = static_cast<size_t>(automaton.starts[before]);
  for (size_t i = at; state != 0; --steps) {
    require(steps > 0, "words", "more than " + std::to_string(kMostSteps) + " steps a byte");
    const bool more = i < text.size();
    const Character c = more ? character(text, i) : Character{0, 0, Character::State::kWhole};
    const int32_t step = automaton.steps[(state - 1) * symbols_ + (more ? class_of(c.code) : symbols_ - 1)];
    if (step & 1) end = i;
    if (!more) break;
    state = static_cast<size_t>(step >> 1);
    i += c.bytes;
  }
  return end;
}

}  // namespace glmlite
