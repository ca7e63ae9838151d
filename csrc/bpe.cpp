#include "bpe.h"

#include <algorithm>
#include <array>
#include <queue>

#include "errors.h"
#include "gguf.h"

namespace glmlite {

namespace {

constexpr size_t kFew = 32;  // up to so many parts of a word, to look through all of them is quicker than a heap

// GPT-2's byte alphabet: a byte that prints is its own character, the others are U+0100, U+0101, ... in their order.
struct Alphabet {
  std::array<std::string, 256> spelled;   // UTF-8
  std::array<int16_t, 0x100 + 68> bytes;  // by code point, -1: no byte

  Alphabet() {
    bytes.fill(-1);
    int others = 0;
    for (int byte = 0; byte < 256; ++byte) {
      const bool prints = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const int code = prints ? byte : 0x100 + others++;
      bytes[static_cast<size_t>(code)] = static_cast<int16_t>(byte);
      std::string& text = spelled[static_cast<size_t>(byte)];
      if (code < 0x80) {
        text.push_back(static_cast<char>(code));
      } else {
        text.push_back(static_cast<char>(0xC0 | code >> 6));
        text.push_back(static_cast<char>(0x80 | (code & 0x3F)));
      }
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet it;
  return it;
}

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93;
  return x ^ x >> 32;
}

uint64_t hash(std::string_view text) {
  uint64_t h = 0xCBF29CE484222325;
  for (char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  return mix(h);
}

// A power of two with at most half of it taken.
size_t table_size(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  return size;
}

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(Strings tokens, std::vector<Kind> kinds, const Strings& merges, bool whole_words,
         const std::function<void()>& check)
    : tokens_(std::move(tokens)), kinds_(std::move(kinds)), whole_words_(whole_words) {
  words_.assign(table_size(tokens_.size()), -1);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (kinds_[i] != Kind::kWord) continue;
    const std::string_view text = tokens_.at(i);
    if (text.empty()) throw FormatError("tokenizer.ggml.tokens: token " + std::to_string(i) + " is empty");
    size_t slot = hash(text) & (words_.size() - 1);
    for (; words_[slot] >= 0; slot = (slot + 1) & (words_.size() - 1)) {
      if (tokens_.at(static_cast<size_t>(words_[slot])) == text) {
        throw FormatError("tokenizer.ggml.tokens: token " + std::to_string(i) + " is the same text as token " +
                          std::to_string(words_[slot]));
      }
    }
    words_[slot] = static_cast<int32_t>(i);
  }
  for (int byte = 0; byte < 256; ++byte) bytes_[byte] = find(alphabet().spelled[static_cast<size_t>(byte)]);

  merges_.assign(table_size(merges.size()), Merge{0, 0, -1});
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    if (i % 4096 == 0) check();
    const std::string_view text = merges.at(i);
    const size_t space = text.find(' ');
    int32_t left = -1, right = -1, both = -1;
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      left = find(text.substr(0, space));
      right = find(text.substr(space + 1));
      joined.assign(text, 0, space).append(text, space + 1, std::string_view::npos);
      both = find(joined);
    }
    if (left < 0 || right < 0 || both < 0) {
      throw FormatError("tokenizer.ggml.merges: merge " + std::to_string(i) + " is '" + printable(std::string(text)) +
                        "', expected two tokens that join to a third");
    }
    const uint64_t pair = pair_of(left, right);
    size_t slot = mix(pair) & (merges_.size() - 1);
    while (merges_[slot].id >= 0 && merges_[slot].pair != pair) slot = (slot + 1) & (merges_.size() - 1);
    merges_[slot] = {pair, static_cast<uint32_t>(i), both};  // of a merge that is there twice, the last counts
  }
}

int32_t Bpe::find(std::string_view word) const {
  for (size_t slot = hash(word) & (words_.size() - 1);; slot = (slot + 1) & (words_.size() - 1)) {
    const int32_t id = words_[slot];
    if (id < 0 || tokens_.at(static_cast<size_t>(id)) == word) return id;
  }
}

const Bpe::Merge* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t slot = mix(pair) & (merges_.size() - 1);; slot = (slot + 1) & (merges_.size() - 1)) {
    const Merge& merge = merges_[slot];
    if (merge.id < 0) return nullptr;
    if (merge.pair == pair) return &merge;
  }
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (whole_words_) {
    std::string spelled;
    for (char c : word) spelled += alphabet().spelled[static_cast<unsigned char>(c)];
    if (const int32_t id = find(spelled); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  const size_t begin = ids.size();
  for (char c : word) {
    if (const int32_t id = bytes_[static_cast<unsigned char>(c)]; id >= 0) ids.push_back(id);
  }
  ids.size() - begin <= kFew ? merge_few(ids, begin) : merge_many(ids, begin);
}

// Both do the merge of the least rank, of equal ones the leftmost, until there is none.
void Bpe::merge_few(std::vector<int32_t>& ids, size_t begin) const {
  const Merge* next[kFew];  // of each part and the one after it
  size_t count = ids.size() - begin;
  int32_t* part = ids.data() + begin;
  for (size_t i = 0; i + 1 < count; ++i) next[i] = find(part[i], part[i + 1]);
  while (count > 1) {
    size_t best = count;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (next[i] != nullptr && (best == count || next[i]->rank < next[best]->rank)) best = i;
    }
    if (best == count) break;
    part[best] = next[best]->id;
    std::move(part + best + 2, part + count, part + best + 1);
    std::move(next + best + 1, next + count - 1, next + best);
    --count;
    if (best > 0) next[best - 1] = find(part[best - 1], part[best]);
    if (best + 1 < count) next[best] = find(part[best], part[best + 1]);
  }
  ids.resize(begin + count);
}

void Bpe::merge_many(std::vector<int32_t>& ids, size_t begin) const {
  struct Candidate {
    uint32_t rank;
    size_t at;
    int32_t id;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const size_t count = ids.size() - begin;
  int32_t* part = ids.data() + begin;  // -1: merged into one before it
  std::vector<size_t> before(count), after(count);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  auto consider = [&](size_t at) {
    if (after[at] == count) return;
    if (const Merge* merge = find(part[at], part[after[at]])) candidates.push({merge->rank, at, merge->id});
  };
  for (size_t i = 0; i < count; ++i) {
    before[i] = i - 1;
    after[i] = i + 1;
  }
  for (size_t i = 0; i < count; ++i) consider(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    const size_t at = best.at;
    if (part[at] < 0 || after[at] == count) continue;
    // The parts may have changed since this was a candidate.
    const Merge* merge = find(part[at], part[after[at]]);
    if (merge == nullptr || merge->id != best.id) continue;
    part[after[at]] = -1;
    part[at] = best.id;
    after[at] = after[after[at]];
    if (after[at] != count) before[after[at]] = at;
    if (at > 0) consider(before[at]);
    consider(at);
  }
  ids.erase(std::remove(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), -1), ids.end());
}

std::string Bpe::piece(size_t id) const {
  const std::string_view text = tokens_.at(id);
  if (kinds_[id] == Kind::kNothing) return {};
  if (kinds_[id] == Kind::kText) return std::string(text);
  std::string bytes;
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    // The alphabet's characters have one byte in UTF-8, or two.
    if (c >= 0xE0 || (c >= 0x80 && i + 1 == text.size())) return std::string(text);
    const size_t code = c < 0x80 ? c : static_cast<size_t>((c & 0x1F) << 6 | (text[i + 1] & 0x3F));
    if (code >= alphabet().bytes.size() || alphabet().bytes[code] < 0) return std::string(text);
    bytes.push_back(static_cast<char>(alphabet().bytes[code]));
    i += c < 0x80 ? 1 : 2;
  }
  return bytes;
}

}  // namespace glmlite
