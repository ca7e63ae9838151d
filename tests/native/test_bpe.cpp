// Byte-level BPE: made-up vocabularies against a plain reading of the rule, hostile words, vocabularies that lie.
#include <atomic>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "bpe.h"
#include "check.h"
#include "errors.h"

using namespace glmlite;

namespace {

using Kind = Bpe::Kind;

Strings strings(const std::vector<std::string>& list) {
  Strings out;
  for (const std::string& text : list) out.add(text);
  return out;
}

Bpe make(const std::vector<std::string>& tokens, const std::vector<std::string>& merges, bool whole_words = false) {
  return Bpe(strings(tokens), std::vector<Kind>(tokens.size(), Kind::kWord), strings(merges), whole_words, [] {});
}

std::vector<int32_t> encode(const Bpe& bpe, const std::string& word) {
  std::vector<int32_t> ids;
  bpe.encode(word, ids);
  return ids;
}

// Tokens and merges of the letters a and b, in which nearly everything merges.
struct Made {
  std::vector<std::string> tokens{"a", "b"}, merges;
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  std::map<std::string, int32_t> ids;

  explicit Made(std::mt19937& random) {
    while (merges.size() < 30) {
      const std::string left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
      if (left.size() + right.size() > 10 || !ranks.emplace(std::make_pair(left, right), merges.size()).second)
        continue;
      merges.push_back(left + " " + right);
      bool known = false;
      for (const std::string& token : tokens) known = known || token == left + right;
      if (!known) tokens.push_back(left + right);
    }
    for (size_t i = 0; i < tokens.size(); ++i) ids[tokens[i]] = static_cast<int32_t>(i);
  }

  // The pair of the least rank merges, of equal ones the leftmost, until none does.
  std::vector<int32_t> encode(const std::string& word) const {
    std::vector<std::string> parts;
    for (char c : word) parts.emplace_back(1, c);
    for (;;) {
      size_t best = parts.size(), rank = merges.size();
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto found = ranks.find({parts[i], parts[i + 1]});
        if (found != ranks.end() && found->second < rank) best = i, rank = found->second;
      }
      if (best == parts.size()) break;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    std::vector<int32_t> out;
    for (const std::string& part : parts) out.push_back(ids.at(part));
    return out;
  }
};

TEST(merges_are_as_specified) {
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    const Made made(random);
    const Bpe bpe = make(made.tokens, made.merges);
    for (size_t length : {0, 1, 2, 3, 31, 32, 33, 34, 100, 300}) {
      std::string word;
      while (word.size() < length) word += random() % 3 == 0 ? 'b' : 'a';
      CHECK(encode(bpe, word) == made.encode(word));
    }
  }
}

TEST(ids_are_appended) {
  const Bpe bpe = make({"a", "b", "ab"}, {"a b"});
  std::vector<int32_t> ids{7, 0};
  bpe.encode("bab", ids);
  CHECK((ids == std::vector<int32_t>{7, 0, 1, 2}));
}

TEST(a_whole_word_needs_no_merges) {
  CHECK((encode(make({"a", "b", "ab"}, {}, true), "ab") == std::vector<int32_t>{2}));
  CHECK((encode(make({"a", "b", "ab"}, {}), "ab") == std::vector<int32_t>{0, 1}));
}

TEST(bytes_that_are_no_token_are_left_out) {
  std::string every;
  for (int byte = 0; byte < 256; ++byte) every += static_cast<char>(byte);
  CHECK((encode(make({"a"}, {}), every) == std::vector<int32_t>{0}));
  CHECK(encode(make({}, {}), every).empty());
  CHECK(encode(make({}, {}, true), "").empty());
}

TEST(a_word_of_a_megabyte_is_soon_done) {
  std::vector<std::string> tokens{"a"}, merges;
  for (int i = 0; i < 10; ++i) {
    merges.push_back(tokens.back() + " " + tokens.back());
    tokens.push_back(tokens.back() + tokens.back());
  }
  const std::vector<int32_t> ids = encode(make(tokens, merges), std::string(1 << 20, 'a'));
  CHECK((ids == std::vector<int32_t>(1 << 10, 10)));
}

TEST(pieces) {
  const std::vector<std::string> tokens{"a", "\u0120b", "<x>", "unused", "\u4e2d", "\u0144", "\xc4", "\xff\xfe"};
  std::vector<Kind> kinds(tokens.size(), Kind::kWord);
  kinds[2] = Kind::kText;
  kinds[3] = Kind::kNothing;
  const Bpe bpe(strings(tokens), kinds, {}, false, [] {});
  const std::vector<std::string> want{"a", " b", "<x>", "", "\u4e2d", "\u0144", "\xc4", "\xff\xfe"};
  for (size_t i = 0; i < want.size(); ++i) CHECK(bpe.piece(i) == want[i]);
}

TEST(vocabularies_that_lie) {
  CHECK_THROWS(FormatError, "token 1 is empty", make({"a", ""}, {}));
  CHECK_THROWS(FormatError, "token 2 is the same text as token 0", make({"a", "b", "a"}, {}));
  const std::string nul("a\0 b", 4);
  for (const std::string& merge : {std::string(), std::string(" "), std::string("ab"), std::string("a  b"),
                                   std::string("a b c"), std::string("a c"), nul, std::string("\xff \xfe")}) {
    CHECK_THROWS(FormatError, "tokenizer.ggml.merges: merge 1 is '", make({"a", "b", "ab"}, {"a b", merge}));
  }
}

TEST(a_check_ends_the_making) {
  auto stop = [] { throw Cancelled("enough"); };
  CHECK_THROWS(Cancelled, "enough", Bpe(strings({"a", "b", "ab"}), {3, Kind::kWord}, strings({"a b"}), false, stop));
}

TEST(threads_share_one) {
  std::mt19937 random(9);
  const Made made(random);
  const Bpe bpe = make(made.tokens, made.merges, true);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 own(static_cast<unsigned>(t));
      for (int round = 0; round < 50; ++round) {
        std::string word;
        while (word.size() < 60) word += own() % 3 == 0 ? 'b' : 'a';
        if (encode(bpe, word) != made.encode(word)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace

RUN_TESTS()
