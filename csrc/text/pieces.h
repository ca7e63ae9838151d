// Vocabularies of sentencepiece: text to ids, id by id as that library gives them.
//   BPE by scores with byte fallback: Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword
//   Units;
//     Kudo and Richardson 2018, SentencePiece.
//   Unigram, the likeliest segmentation by Viterbi's algorithm: Kudo 2018, Subword Regularization.
//   The character map is a double array: Aoe 1989; its units are those of the darts-clone library.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bpe.h"
#include "text/trie.h"

namespace glmlite {

// GGUF's tokenizer.ggml.token_type
enum class TokenType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

class Pieces {
 public:
  struct Settings {
    bool unigram;             // else BPE
    bool space_prefix;        // a blank is put before a text
    bool remove_extra_space;  // at both ends, and of several blanks all but one
  };

  // tokens: UTF-8, with their types and finite scores. characters: sentencepiece's precompiled_charsmap, may be empty.
  // Throws FormatError, naming the key.
  Pieces(const Strings& tokens, const std::vector<TokenType>& types, std::vector<float> scores, std::string characters,
         Settings settings);

  // Appends the ids of `text`, which is UTF-8. Any number of threads may call it.
  // Throws FormatError for a character map that makes a text more than 64 times as long.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

 private:
  struct Prefix;

  std::string normalize(std::string_view text) const;
  Prefix normalize_prefix(std::string_view text) const;
  size_t user_defined(std::string_view text) const;
  void merge(std::string_view text, std::vector<int32_t>& ids) const;
  void viterbi(std::string_view text, std::vector<int32_t>& ids) const;
  void append(int32_t id, std::string_view piece, bool& unknown_before, std::vector<int32_t>& ids) const;

  Settings settings_;
  std::vector<float> scores_;   // by id
  std::vector<uint8_t> user_;   // by id: user-defined
  float least_ = 0;             // score of a normal token
  Trie pieces_, user_pieces_;   // normal and user-defined ones; user-defined ones
  std::vector<int32_t> bytes_;  // ids of the 256 bytes, or none
  int32_t unknown_ = -1;
  std::vector<uint32_t> units_;  // of the character map
  std::string replacements_;     // each ends with NUL
};

}  // namespace glmlite
