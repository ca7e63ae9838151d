#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "errors.h"
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
class Fields {
 public:
  explicit Fields(const Metadata& metadata) : metadata_(metadata) {}

  std::string text(const std::string& key) const {
    const Value* value = find(key, ValueType::kString, false, "a string");
    if (value == nullptr) refuse(key, "missing, expected a string");
    return value->bytes;
  }

  bool flag(const std::string& key) const {
    const Value* value = find(key, ValueType::kBool, false, "a bool");
    if (value == nullptr) refuse(key, "missing, expected a bool");
    return value->bytes[0] != 0;
  }

  template <class T>
  std::vector<T> numbers(const std::string& key, ValueType type) const {
    const Value* value = find(key, type, true, "numbers of GGUF's type " + std::to_string(static_cast<uint32_t>(type)));
    std::vector<T> numbers(value == nullptr ? 0 : value->bytes.size() / sizeof(T));
    if (!numbers.empty()) std::memcpy(numbers.data(), value->bytes.data(), numbers.size() * sizeof(T));
    return numbers;
  }

  Strings strings(const std::string& key) const {
    const Value* value = find(key, ValueType::kString, true, "strings");
    Strings strings;
    if (value == nullptr) return strings;
    if (value->bytes.size() > UINT32_MAX / 2) refuse(key, "more than 2 GB of strings");
    strings.bytes = value->bytes;
    strings.ends.assign(value->ends.begin(), value->ends.end());
    for (size_t i = 0; i < strings.size(); ++i) {
      const std::string_view text = strings.at(i);
      if (first_broken(text) != text.size()) refuse(key, "string " + std::to_string(i) + " is not UTF-8");
    }
    return strings;
  }

  // Token ids.
  std::vector<int32_t> ids(const std::string& key, size_t count) const {
    std::vector<int32_t> ids = numbers<int32_t>(key, ValueType::kInt32);
    for (int32_t id : ids) {
      if (id < 0 || static_cast<size_t>(id) >= count) {
        refuse(key, "token id " + std::to_string(id) + ", expected 0 to " + std::to_string(count - 1));
      }
    }
    return ids;
  }

 private:
  const Value* find(const std::string& key, ValueType type, bool is_array, const std::string& expected) const {
    for (const auto& [name, value] : metadata_) {
      if (name != key) continue;
      if (value.type != type || value.is_array != is_array) refuse(key, "of another type, expected " + expected);
      return &value;
    }
    return nullptr;
  }

  const Metadata& metadata_;
};

void same_length(const std::string& key, size_t length, size_t expected) {
  if (length != expected) refuse(key, std::to_string(length) + " values, expected " + std::to_string(expected));
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
  const Fields fields(metadata);
  const std::string model = fields.text("glmlite.text.model");
  tokens_ = fields.strings(kTokens);
  const size_t count = tokens_.size();
  if (count == 0) refuse(kTokens, "missing or empty, expected tokens");
  if (count > INT32_MAX) refuse(kTokens, "more than 2^31 tokens");
  const std::vector<uint8_t> types = fields.numbers<uint8_t>("glmlite.text.types", ValueType::kUint8);
  same_length("glmlite.text.types", types.size(), count);
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
    words_ = std::make_unique<Words>(fields.numbers<uint32_t>("glmlite.text.classes", ValueType::kUint32),
                                     fields.numbers<int32_t>("glmlite.text.words", ValueType::kInt32));
    bpe_ = std::make_unique<Bpe>(tokens_, std::move(kinds), fields.strings(kMerges),
                                 fields.flag("glmlite.text.whole_words"), [] {});
    for (size_t i = 0; i < count; ++i) pieces_.add(bpe_->piece(i));
  } else if (model == "bpe" || model == "unigram") {
    std::vector<float> scores = fields.numbers<float>("glmlite.text.scores", ValueType::kFloat32);
    same_length("glmlite.text.scores", scores.size(), count);
    const bool space_prefix = fields.flag("glmlite.text.space_prefix");
    drop_blanks_ = fields.flag("glmlite.text.remove_extra_space");
    begins_with_blank_ = space_prefix || drop_blanks_;
    const std::vector<char> characters = fields.numbers<char>("glmlite.text.characters", ValueType::kUint8);
    sentencepiece_ =
        std::make_unique<Pieces>(tokens_, types_, std::move(scores), std::string(characters.begin(), characters.end()),
                                 Pieces::Settings{model == "unigram", space_prefix, drop_blanks_});
    blank_tokens_ = fields.flag("glmlite.text.blank_tokens");
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
  const Strings texts = fields.strings(special + "texts");
  special_ids_ = fields.ids(special + "ids", count);
  special_rules_ = fields.numbers<uint8_t>(special + "rules", ValueType::kUint8);
  same_length(special + "ids", special_ids_.size(), texts.size());
  same_length(special + "rules", special_rules_.size(), texts.size());
  std::vector<std::pair<std::string_view, int32_t>> places;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts.at(i).empty() || texts.at(i).size() > kLongestSpecial) {
      refuse(special + "texts", "text " + std::to_string(i) + " has " + std::to_string(texts.at(i).size()) +
                                    " bytes, expected 1 to " + std::to_string(kLongestSpecial));
    }
    places.emplace_back(texts.at(i), static_cast<int32_t>(i));
  }
  special_ = Trie(std::move(places));
  ends_ = fields.ids("glmlite.text.ends", count);
  prefix_ = fields.ids("glmlite.text.prefix", count);
  begins_ = fields.ids("glmlite.text.begins", count);
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
