// Text to token ids and back, from the tables that glmlite/tokenizer/tables.py writes into a file's metadata: the same
// ids as Python's Tokenizer, without its libraries.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bpe.h"
#include "gguf.h"
#include "text/pieces.h"
#include "text/trie.h"
#include "text/words.h"

namespace glmlite {

// Immutable: any number of threads may use one.
class Tokenizer {
 public:
  // Copies what it needs. Throws FormatError, "key: what it is, what it should be".
  explicit Tokenizer(const Metadata& metadata);

  // Appends the ids of `text`. Bytes that are no UTF-8 count as U+FFFD, as errors="replace" has it in Python.
  // special: special tokens written in the text count as such; otherwise they are plain text, so that what a person
  // types cannot forge them. Throws FormatError for tables that lie (Words::cut, Pieces::encode), and
  // std::invalid_argument for a text of 2 GB or more.
  void encode(std::string_view text, bool special, std::vector<int32_t>& ids) const;

  // A prompt with `prefix()` in front exactly once, however much or often of it `ids` begin with; white space among
  // that goes, too. Throws std::invalid_argument for an id outside the vocabulary.
  std::vector<int32_t> begin(const std::vector<int32_t>& ids) const;

  size_t size() const { return types_.size(); }               // ids are 0 to size() - 1
  const std::vector<int32_t>& ends() const { return ends_; }  // ids that end an answer, ascending
  const std::vector<int32_t>& prefix() const { return prefix_; }
  // The bytes of one token in the middle of a text; not always whole characters. Throws std::invalid_argument for an id
  // outside the vocabulary.
  std::string_view piece(int32_t id) const { return pieces_.at(checked(id)); }
  bool is_special(int32_t id) const;  // whether TextStream can leave it out: control tokens and the unknown token
  // The id of the token that the file spells `text`, a special one first; -1: none. Looks through all of them.
  int32_t find(std::string_view text) const;

 private:
  friend class TextStream;
  enum Rule : uint8_t { kAfterMask = 1, kInPlainText = 2 };  // of a special token, bits

  void plain(std::string_view text, std::vector<int32_t>& ids) const;
  size_t checked(int32_t id) const;

  Strings tokens_, pieces_;
  std::vector<TokenType> types_;
  std::unique_ptr<const Bpe> bpe_;               // of byte-level BPE: these two,
  std::unique_ptr<const Words> words_;           //
  std::unique_ptr<const Pieces> sentencepiece_;  // else this
  bool blank_tokens_ = false;                    // ChatGLM-6B: newlines, tabs and runs of blanks are tokens
  bool begins_with_blank_ = false, drop_blanks_ = false;
  Trie special_;  // of texts, to their place in the next two
  std::vector<int32_t> special_ids_;
  std::vector<uint8_t> special_rules_;
  std::vector<int32_t> ends_, prefix_, begins_;
};

// The text of one stream of ids; a thread at a time. Holds a reference to its Tokenizer.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, bool skip_special) : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // Appends the text that `id` completes: whole characters. Bytes that can no longer become one are U+FFFD as soon as
  // that is certain. Throws std::invalid_argument for an id outside the vocabulary.
  void push(int32_t id, std::string& text);
  // Appends what is left at the end: the replacement of an incomplete character, or nothing.
  void finish(std::string& text);

 private:
  void append(std::string& text, bool end);

  const Tokenizer& tokenizer_;
  const bool skip_special_;
  bool at_start_ = true;
  std::string waiting_;  // the beginning of a character
};

}  // namespace glmlite
