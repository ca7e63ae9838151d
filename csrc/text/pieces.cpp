#include "text/pieces.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <queue>
#include <stdexcept>
#include <utility>

#include "errors.h"
#include "text/utf8.h"

namespace glmlite {

namespace {

constexpr size_t kLongest = 1024;  // bytes of a piece, and of what the character map looks at and gives
constexpr size_t kMostGrowth = 64;
constexpr float kUnknownPenalty = 10;                // against the least score
constexpr std::string_view kBlank = "\xE2\x96\x81";  // U+2581 stands for a space in pieces

void require(bool ok, const char* key, const std::string& what) {
  if (!ok) throw FormatError(std::string(key) + ": " + what);
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

Pieces::Pieces(const Strings& tokens, const std::vector<TokenType>& types, std::vector<float> scores,
               std::string characters, Settings settings)
    : settings_(settings), scores_(std::move(scores)), user_(tokens.size()) {
  const char* key = "tokenizer.ggml.tokens";
  require(std::all_of(scores_.begin(), scores_.end(), [](float s) { return std::isfinite(s); }), "glmlite.text.scores",
          "a score that is not finite");
  std::vector<std::pair<std::string_view, int32_t>> pieces, user;
  size_t bytes = 0;
  std::vector<int32_t> byte_ids(256, -1);
  least_ = FLT_MAX;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string_view token = tokens.at(i);
    const auto id = static_cast<int32_t>(i);
    if (types[i] == TokenType::kUnknown) {
      require(unknown_ < 0, key, "two unknown tokens, expected one");
      unknown_ = id;
    } else if (types[i] == TokenType::kByte) {
      const std::string_view digits = "0123456789ABCDEF";
      size_t high = digits.npos, low = digits.npos;
      if (token.size() == 6 && token.substr(0, 3) == "<0x" && token[5] == '>') {
        high = digits.find(token[3]);
        low = digits.find(token[4]);
      }
      require(high != digits.npos && low != digits.npos, key, "a byte token that is not '<0x00>' to '<0xFF>'");
      if (byte_ids[high << 4 | low] < 0) ++bytes;
      byte_ids[high << 4 | low] = id;
    } else if (types[i] == TokenType::kNormal || types[i] == TokenType::kUserDefined) {
      require(!token.empty() && token.size() <= kLongest, key,
              "token " + std::to_string(i) + " has " + std::to_string(token.size()) + " bytes, expected 1 to " +
                  std::to_string(kLongest));
      pieces.emplace_back(token, id);
      if (types[i] == TokenType::kUserDefined) {
        user.emplace_back(token, id);
        user_[i] = 1;
      } else {
        least_ = std::min(least_, scores_[i]);
      }
    }
  }
  require(unknown_ >= 0, key, "no unknown token, expected one");
  require(bytes == 0 || bytes == 256, key, std::to_string(bytes) + " byte tokens, expected 256 or none");
  if (bytes > 0) bytes_ = std::move(byte_ids);
  pieces_ = Trie(std::move(pieces));
  user_pieces_ = Trie(std::move(user));

  if (characters.empty()) return;
  key = "glmlite.text.characters";
  uint32_t size = 0;
  const auto number = [&](size_t at) {
    uint32_t value = 0;
    for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(characters[at + i]);
    return value;
  };
  if (characters.size() > 4) size = number(0);
  require(size >= 4 && size % 4 == 0 && size < characters.size() - 4, key,
          "a trie of " + std::to_string(size) + " bytes in " + std::to_string(characters.size()));
  for (size_t at = 4; at < 4 + size_t{size}; at += 4) units_.push_back(number(at));
  replacements_ = characters.substr(4 + size_t{size});
  require(replacements_.back() == '\0' && first_broken(replacements_) == replacements_.size(), key,
          "replacements that are no UTF-8 or do not end with NUL");
}

void Pieces::encode(std::string_view text, std::vector<int32_t>& ids) const {
  const std::string normal = normalize(text);
  if (normal.size() >= INT32_MAX) throw std::invalid_argument("encode: a text of 2 GB or more");
  if (normal.empty()) return;
  settings_.unigram ? viterbi(normal, ids) : merge(normal, ids);
}

// ---- the text that is looked for
// -------------------------------------------------------------------------------------

// What the first characters of a text become, and how many bytes of it that is for.
struct Pieces::Prefix {
  std::string_view becomes;
  size_t bytes;
};

std::string Pieces::normalize(std::string_view text) const {
  const bool single = settings_.remove_extra_space;
  if (single) {
    while (!text.empty()) {
      const Prefix prefix = normalize_prefix(text);
      if (prefix.becomes != " ") break;
      text.remove_prefix(prefix.bytes);
    }
  }
  std::string out;
  if (text.empty()) return out;
  const size_t most = kMostGrowth * (text.size() + kLongest);
  if (settings_.space_prefix) out += kBlank;
  bool after_blank = single;
  while (!text.empty()) {
    Prefix prefix = normalize_prefix(text);
    text.remove_prefix(prefix.bytes);
    while (after_blank && !prefix.becomes.empty() && prefix.becomes[0] == ' ') prefix.becomes.remove_prefix(1);
    for (char c : prefix.becomes) {
      if (c == ' ') {
        out += kBlank;
      } else {
        out.push_back(c);
      }
    }
    if (out.size() > most) throw FormatError("glmlite.text.characters: a text grows to more than 64 times its size");
    if (single && !prefix.becomes.empty()) after_blank = prefix.becomes.back() == ' ';
  }
  if (single) {
    while (ends_with(out, kBlank)) out.resize(out.size() - kBlank.size());
  }
  return out;
}

Pieces::Prefix Pieces::normalize_prefix(std::string_view text) const {
  if (const size_t size = user_defined(text)) return {text.substr(0, size), size};
  size_t longest = 0, value = 0;
  if (!units_.empty()) {
    // A unit: its byte, or bit 31; bit 8: a value follows it; the rest: what its position is combined with to come to
    // its children, of which the one for byte 0 is the value.
    const auto offset = [](uint32_t unit) { return unit >> 10 << ((unit & 0x200) >> 6); };
    uint32_t at = offset(units_[0]);
    for (size_t i = 0; i < std::min(text.size(), kLongest); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      at ^= byte;
      if (at >= units_.size() || (units_[at] & 0x800000FF) != byte) break;
      const uint32_t unit = units_[at];
      at ^= offset(unit);
      if ((unit & 0x100) == 0) continue;
      if (at >= units_.size() || (units_[at] & 0x7FFFFFFF) >= replacements_.size()) break;
      longest = i + 1;
      value = units_[at] & 0x7FFFFFFF;
    }
  }
  if (longest == 0) {
    const size_t size = character(text, 0).bytes;
    return {text.substr(0, size), size};
  }
  return {std::string_view(replacements_).substr(value, replacements_.find('\0', value) - value), longest};
}

// How many bytes of a text's beginning are the longest user-defined piece there; 0: none.
size_t Pieces::user_defined(std::string_view text) const {
  size_t longest = 0;
  Trie::Node node = Trie::kRoot;
  for (size_t i = 0; i < text.size(); ++i) {
    node = user_pieces_.next(node, static_cast<unsigned char>(text[i]));
    if (node == Trie::kNone) break;
    if (user_pieces_.value(node) >= 0) longest = i + 1;
  }
  return longest;
}

// ---- BPE
// -------------------------------------------------------------------------------------------------------------

void Pieces::merge(std::string_view text, std::vector<int32_t>& ids) const {
  constexpr uint32_t kEnd = UINT32_MAX;
  struct Symbol {
    uint32_t begin, size;  // size 0: merged into one before it
    uint32_t before, after;
    Trie::Node node;
    bool frozen;
  };
  struct Candidate {
    float score;
    uint32_t left, right, size;
    bool operator<(const Candidate& o) const { return score != o.score ? score < o.score : left > o.left; }
  };
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < text.size();) {
    const size_t user = user_defined(text.substr(at));
    const auto size = static_cast<uint32_t>(user > 0 ? user : character(text, at).bytes);
    const auto i = static_cast<uint32_t>(symbols.size());
    symbols.push_back(
        {static_cast<uint32_t>(at), size, i - 1, i + 1, pieces_.next(Trie::kRoot, text.substr(at, size)), user > 0});
    at += size;
  }
  symbols.front().before = symbols.back().after = kEnd;

  const auto joined = [&](const Symbol& left, const Symbol& right) {
    return pieces_.next(left.node, text.substr(right.begin, right.size));
  };
  std::priority_queue<Candidate> candidates;
  const auto consider = [&](uint32_t left, uint32_t right) {
    if (left == kEnd || right == kEnd || symbols[left].frozen || symbols[right].frozen) return;
    const int32_t id = pieces_.value(joined(symbols[left], symbols[right]));
    if (id < 0) return;
    candidates.push({scores_[static_cast<size_t>(id)], left, right, symbols[left].size + symbols[right].size});
  };
  for (uint32_t i = 1; i < symbols.size(); ++i) consider(i - 1, i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol &left = symbols[best.left], &right = symbols[best.right];
    if (left.size == 0 || right.size == 0 || left.size + right.size != best.size) continue;
    left.node = joined(left, right);
    left.size = best.size;
    left.after = right.after;
    if (right.after != kEnd) symbols[right.after].before = best.left;
    right.size = 0;
    consider(left.before, best.left);
    consider(best.left, left.after);
  }
  bool unknown = false;
  for (uint32_t i = 0; i != kEnd; i = symbols[i].after) {
    append(pieces_.value(symbols[i].node), text.substr(symbols[i].begin, symbols[i].size), unknown, ids);
  }
}

// ---- unigram
// ---------------------------------------------------------------------------------------------------------

void Pieces::viterbi(std::string_view text, std::vector<int32_t>& ids) const {
  // The library's arithmetic (0.2.3), in floats and from zero again when a sum grows: ways that tie are common
  // ("|---|---|---"), and what rounding leaves of them decides.
  constexpr float kMostScore = 100000;
  constexpr uint32_t kNowhere = UINT32_MAX;
  struct Best {  // of the ways that end at a position
    float score = 0;
    int32_t id = -1;  // of the last piece; -1: a character that is no piece
    uint32_t from = kNowhere;
  };
  std::vector<Best> best(text.size() + 1);
  size_t furthest = 0;  // position that a way reaches
  const auto offer = [&](size_t end, float score, int32_t id, size_t from) {
    furthest = std::max(furthest, end);
    if (best[end].from == kNowhere || score > best[end].score) best[end] = {score, id, static_cast<uint32_t>(from)};
  };
  const float unknown_score = least_ - kUnknownPenalty;
  for (size_t at = 0; at < text.size();) {
    if (const float sum = best[at].score; std::fabs(sum) > kMostScore) {
      for (size_t i = at; i <= furthest; ++i) best[i].score -= sum;
    }
    const float before = best[at].score;
    const size_t size = character(text, at).bytes;
    bool single = false;
    Trie::Node node = Trie::kRoot;
    for (size_t end = at; end < text.size();) {
      node = pieces_.next(node, static_cast<unsigned char>(text[end++]));
      if (node == Trie::kNone) break;
      const int32_t id = pieces_.value(node);
      if (id < 0) continue;
      const auto i = static_cast<size_t>(id);
      const float score = user_[i] ? static_cast<float>(0.1 * static_cast<double>(end - at - 1)) : scores_[i];
      offer(end, score + before, id, at);
      single = single || end - at == size;
    }
    if (!single) offer(at + size, unknown_score + before, -1, at);
    at += size;
  }
  std::vector<size_t> ends;
  for (size_t end = text.size(); end > 0; end = best[end].from) ends.push_back(end);
  bool unknown = false;
  for (size_t i = ends.size(); i-- > 0;) {
    const Best& last = best[ends[i]];
    append(last.id, text.substr(last.from, ends[i] - last.from), unknown, ids);
  }
}

// A piece's id; of one that is none its bytes, or else the unknown token, once for several one after another.
void Pieces::append(int32_t id, std::string_view piece, bool& unknown_before, std::vector<int32_t>& ids) const {
  if (id >= 0) {
    ids.push_back(id);
  } else if (!bytes_.empty()) {
    for (char c : piece) ids.push_back(bytes_[static_cast<unsigned char>(c)]);
  } else if (!unknown_before) {
    ids.push_back(unknown_);
  }
  unknown_before = id < 0;
}

}  // namespace glmlite
