// Byte-level byte-pair encoding: the bytes of a word to token ids, by merges in the order of their rank
// (Sennrich et al. 2016; the byte alphabet is GPT-2's). Where a text is cut into words is its caller's matter.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace glmlite {

// Strings end to end.
struct Strings {
  std::string bytes;
  std::vector<uint32_t> ends;  // where each ends in `bytes`

  size_t size() const { return ends.size(); }
  std::string_view at(size_t i) const {
    const size_t begin = i == 0 ? 0 : ends[i - 1];
    return std::string_view(bytes).substr(begin, ends[i] - begin);
  }
  void add(std::string_view text) {
    bytes.append(text);
    ends.push_back(static_cast<uint32_t>(bytes.size()));
  }
};

class Bpe {
 public:
  // What a token is: a word in the byte alphabet, which merges may make; a text as it stands; or nothing.
  enum class Kind : uint8_t { kWord, kText, kNothing };

  // tokens: UTF-8, by id. merges: "left right", the first to be tried first; both and what they join to are words.
  // whole_words: a word that is a token as a whole is that token, whatever the merges would make of it.
  // check: called after every few thousand merges; what it throws ends the making.
  // Throws FormatError, naming GGUF's key, for words that are empty or there twice, and for other merges.
  Bpe(Strings tokens, std::vector<Kind> kinds, const Strings& merges, bool whole_words,
      const std::function<void()>& check);

  // Appends the ids of a word's bytes. A byte that is no token by itself is left out. Any number of threads may call
  // it.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  size_t size() const { return tokens_.size(); }
  // The bytes that a token stands for. A word that is not spelled in the byte alphabet stands for itself.
  std::string piece(size_t id) const;

 private:
  struct Merge {
    uint64_t pair;  // left id, right id
    uint32_t rank;
    int32_t id;
  };

  int32_t find(std::string_view word) const;  // id of a word, -1: none
  const Merge* find(int32_t left, int32_t right) const;
  void merge_few(std::vector<int32_t>& ids, size_t begin) const;
  void merge_many(std::vector<int32_t>& ids, size_t begin) const;

  Strings tokens_;
  std::vector<Kind> kinds_;
  std::vector<int32_t> words_;  // ids by hash, -1: free; open addressing
  std::vector<Merge> merges_;   // by hash of the pair, id -1: free
  int32_t bytes_[256];          // the id of each byte, -1: none
  bool whole_words_;
};

}  // namespace glmlite
