#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "errors.h"
#include "keys.h"
#include "text/utf8.h"

namespace glmlite {

namespace {

const char* const kTokens = "tokenizer.ggml.tokens";
const char* const kMerges = "tokenizer.ggml.merges";
constexpr std::string_view kUnknownText = " \xE2\x81\x87 ";  // what sentencepiece writes for the unknown token
constexpr std::string_view kBlank = "\xE2\x96\x81";
constexpr size_t kLongestSpecial = 1024;  // bytes
constexpr size_t kLongestRun = 80;        // of blanks that are one token of ChatGLM-6B's

[[noreturn]] void refuse(const std::string& key, const std::string& what) { throw FormatError(key + ": " + what); }

// What tables.py has written. What is empty is not there.
template <class T>
std::vector<T> numbers(const Keys& keys, const std::string& key) {
  return keys.has(key) ? keys.numbers<T>(key) : std::vector<T>();
}

std::vector<int32_t> ids(const Keys& keys, const std::string& key, size_t count) {
  return keys.has(key) ? keys.ids(key, static_cast<int64_t>(count)) : std::vector<int32_t>();
}

Strings strings(const Keys& keys, const std::string& key) {
  Strings strings;
  if (!keys.has(key)) return strings;
  for (const std::string& text : keys.texts(key)) {
    if (first_broken(text) != text.size()) refuse(key, "string " + std::to_string(strings.size()) + " is not UTF-8");
    if (text.size() > UINT32_MAX / 2 - strings.bytes.size()) refuse(key, "more than 2 GB of strings");
    strings.add(text);
  }
  return strings;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool ends_with_mask(std::string_view text) {
  constexpr std::array<std::string_view, 3> masks{"[MASK]", "[gMASK]", "[sMASK]"};
  return std::any_of(masks.begin(), masks.end(), [&](std::string_view mask) {
    return text.size() >= mask.size() && text.substr(text.size() - mask.size()) == mask;
  });
}

// White space as ChatGLM-6B's vocabulary spells it, each with what it stands for.
std::string blank_token(size_t count) { return "<|blank_" + std::to_string(count) + "|>"; }
constexpr std::string_view kNewline = "<n>", kTab = "<|tab|>";

std::string with_blank_tokens(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    size_t run = 0;
    while (run < kLongestRun && i + run < text.size() && text[i + run] == ' ') ++run;
    if (run > 1) {
      out += blank_token(run);
    } else if (text[i] == '\n') {
      out += kNewline;
    } else if (text[i] == '\t') {
      out += kTab;
    } else {
      out.push_back(text[i]);
    }
    i += std::max(run, size_t{1});
  }
  return out;
}

// A token's bytes in a vocabulary of sentencepiece.
std::string sentencepiece_bytes(std::string_view token, TokenType type) {
  switch (type) {
    case TokenType::kByte:
      return std::string(1, static_cast<char>(std::stoi(std::string(token.substr(3, 2)), nullptr, 16)));
    case TokenType::kUnused:
      return {};
    case TokenType::kUnknown:
      return std::string(kUnknownText);
    case TokenType::kControl:
      return std::string(token);
    case TokenType::kNormal:
    case TokenType::kUserDefined:
      break;
  }
  std::string out;
  for (size_t i = 0; i < token.size();) {
    const bool blank = token.substr(i, kBlank.size()) == kBlank;
    out.push_back(blank ? ' ' : token[i]);
    i += blank ? kBlank.size() : 1;
  }
  return out;
}

}  // namespace

Tokenizer::Tokenizer(const Metadata& metadata) {
  const Keys keys(metadata);
  const std::string model = keys.text("glmlite.text.model");
  tokens_ = strings(keys, kTokens);
  const size_t count = tokens_.size();
  if (count == 0) refuse(kTokens, "missing or empty, expected tokens");
  if (count > INT32_MAX) refuse(kTokens, "more than 2^31 tokens");
  const std::vector<uint8_t> types = numbers<uint8_t>(keys, "glmlite.text.types");
  Keys::same_length("glmlite.text.types", types.size(), kTokens, count);
  for (uint8_t type : types) {
    if (type < 1 || type > 6) refuse("glmlite.text.types", "type " + std::to_string(type) + ", expected 1 to 6");
    types_.push_back(static_cast<TokenType>(type));
  }

  if (model == "byte_bpe") {
    std::vector<Bpe::Kind> kinds;
    for (TokenType type : types_) {
      const bool word = type == TokenType::kNormal || type == TokenType::kByte;
      kinds.push_back(word ? Bpe::Kind::kWord : type == TokenType::kUnused ? Bpe::Kind::kNothing : Bpe::Kind::kText);
    }
    words_ = std::make_unique<Words>(numbers<uint32_t>(keys, "glmlite.text.classes"),
                                     numbers<int32_t>(keys, "glmlite.text.words"));
    bpe_ = std::make_unique<Bpe>(tokens_, std::move(kinds), strings(keys, kMerges),
                                 keys.flag("glmlite.text.whole_words"), [] {});
    for (size_t i = 0; i < count; ++i) pieces_.add(bpe_->piece(i));
  } else if (model == "bpe" || model == "unigram") {
    std::vector<float> scores = numbers<float>(keys, "glmlite.text.scores");
    Keys::same_length("glmlite.text.scores", scores.size(), kTokens, count);
    const bool space_prefix = keys.flag("glmlite.text.space_prefix");
    drop_blanks_ = keys.flag("glmlite.text.remove_extra_space");
    begins_with_blank_ = space_prefix || drop_blanks_;
    const std::vector<uint8_t> characters = numbers<uint8_t>(keys, "glmlite.text.characters");
    sentencepiece_ =
        std::make_unique<Pieces>(tokens_, types_, std::move(scores), std::string(characters.begin(), characters.end()),
                                 Pieces::Settings{model == "unigram", space_prefix, drop_blanks_});
    blank_tokens_ = keys.flag("glmlite.text.blank_tokens");
    for (size_t i = 0; i < count; ++i) {
      std::string bytes = sentencepiece_bytes(tokens_.at(i), types_[i]);
      if (blank_tokens_ && types_[i] == TokenType::kUserDefined) {
        const std::string_view token = tokens_.at(i);
        if (token == kNewline) bytes = "\n";
        if (token == kTab) bytes = "\t";
        for (size_t run = 2; run <= kLongestRun && token.substr(0, 8) == "<|blank_"; ++run) {
          if (token == blank_token(run)) bytes.assign(run, ' ');
        }
      }
      pieces_.add(bytes);
    }
  } else {
    refuse("glmlite.text.model", "'" + printable(model) + "' is not known; known: bpe, byte_bpe, unigram");
  }

  const std::string special = "glmlite.text.special_";
  const Strings texts = strings(keys, special + "texts");
  special_ids_ = ids(keys, special + "ids", count);
  special_rules_ = numbers<uint8_t>(keys, special + "rules");
  Keys::same_length(special + "ids", special_ids_.size(), special + "texts", texts.size());
  Keys::same_length(special + "rules", special_rules_.size(), special + "texts", texts.size());
  std::vector<std::pair<std::string_view, int32_t>> places;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts.at(i).empty() || texts.at(i).size() > kLongestSpecial) {
      refuse(special + "texts", "text " + std::to_string(i) + " has " + std::to_string(texts.at(i).size()) +
                                    " bytes, expected 1 to " + std::to_string(kLongestSpecial));
    }
    places.emplace_back(texts.at(i), static_cast<int32_t>(i));
  }
  special_ = Trie(std::move(places));
  ends_ = ids(keys, "glmlite.text.ends", count);
  prefix_ = ids(keys, "glmlite.text.prefix", count);
  begins_ = ids(keys, "glmlite.text.begins", count);
}

void Tokenizer::encode(std::string_view text, bool special, std::vector<int32_t>& ids) const {
  if (first_broken(text) != text.size()) return encode(replaced(text), special, ids);
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    // The longest special token that begins here.
    int32_t found = -1;
    size_t end = at;
    Trie::Node node = Trie::kRoot;
    for (size_t i = at; i < text.size(); ++i) {
      node = special_.next(node, static_cast<unsigned char>(text[i]));
      if (node == Trie::kNone) break;
      const int32_t place = special_.value(node);
      if (place < 0) continue;
      const uint8_t rule = special_rules_[static_cast<size_t>(place)];
      if (!special && (rule & kInPlainText) == 0) continue;
      if ((rule & kAfterMask) != 0 && !ends_with_mask(text.substr(0, at))) continue;
      found = place;
      end = i + 1;
    }
    if (found < 0) {
      ++at;
      continue;
    }
    plain(text.substr(begin, at - begin), ids);
    ids.push_back(special_ids_[static_cast<size_t>(found)]);
    begin = at = end;
  }
  plain(text.substr(begin), ids);
}

void Tokenizer::plain(std::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (bpe_ != nullptr) {
    words_->cut(text, [&](std::string_view word) { bpe_->encode(word, ids); });
  } else if (blank_tokens_) {
    sentencepiece_->encode(with_blank_tokens(text), ids);
  } else {
    sentencepiece_->encode(text, ids);
  }
}

std::vector<int32_t> Tokenizer::begin(const std::vector<int32_t>& ids) const {
  if (prefix_.empty()) return ids;
  size_t begin = 0;
  for (size_t at = 0; at < ids.size(); ++at) {
    if (std::find(begins_.begin(), begins_.end(), ids[at]) != begins_.end()) {
      begin = at + 1;
      continue;
    }
    const std::string_view bytes = piece(ids[at]);
    if (bytes.empty() || !std::all_of(bytes.begin(), bytes.end(), is_space)) break;
  }
  std::vector<int32_t> out = prefix_;
  out.insert(out.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end());
  return out;
}

bool Tokenizer::is_special(int32_t id) const {
  const TokenType type = types_[checked(id)];
  return type == TokenType::kControl || type == TokenType::kUnknown;
}

int32_t Tokenizer::find(std::string_view text) const {
  int32_t found = -1;
  for (size_t i = 0; i < size(); ++i) {
    if (tokens_.at(i) != text) continue;
    const TokenType type = types_[i];
    const bool marked = type == TokenType::kControl || type == TokenType::kUserDefined || type == TokenType::kUnknown;
    if (marked) return static_cast<int32_t>(i);
    if (found < 0) found = static_cast<int32_t>(i);
  }
  return found;
}

size_t Tokenizer::checked(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= size()) {
    throw std::invalid_argument("token id " + std::to_string(id) + ", expected 0 to " + std::to_string(size() - 1));
  }
  return static_cast<size_t>(id);
}

void TextStream::push(int32_t id, std::string& text) {
  std::string_view piece = tokenizer_.piece(id);
  if (tokenizer_.is_special(id)) {
    const bool unknown = tokenizer_.types_[static_cast<size_t>(id)] == TokenType::kUnknown;
    at_start_ = !unknown || tokenizer_.bpe_ != nullptr;
    if (skip_special_) return;
  } else if (at_start_ && !piece.empty()) {
    const TokenType type = tokenizer_.types_[static_cast<size_t>(id)];
    const bool blank = tokenizer_.begins_with_blank_ && type != TokenType::kByte &&
                       tokenizer_.tokens_.at(static_cast<size_t>(id)).substr(0, kBlank.size()) == kBlank;
    if (blank) piece.remove_prefix(1);
    at_start_ = piece.empty() && tokenizer_.drop_blanks_;
  }
  waiting_ += piece;
  append(text, false);
}

void TextStream::finish(std::string& text) {
  append(text, true);
  at_start_ = true;
}

void TextStream::append(std::string& text, bool end) {
  size_t at = 0;
  while (at < waiting_.size()) {
    const Character c = character(waiting_, at);
    if (c.state == Character::State::kCut && !end) break;
    if (c.state == Character::State::kWhole) {
      text.append(waiting_, at, c.bytes);
    } else {
      // sentencepiece writes one for every byte, byte-level BPE one for every beginning of a character.
      for (uint32_t i = 0; i < (tokenizer_.bpe_ == nullptr ? c.bytes : 1); ++i) text += kReplacementText;
    }
    at += c.bytes;
  }
  waiting_.erase(0, at);
}

}  // namespace glmlite
