// Tokenizers from tables: small ones against what is worked out by hand, hostile texts, tables that lie. That ids are
// those of the libraries is tested in Python (tests/test_text_tables.py).
#include <thread>

#include "check.h"
#include "errors.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

using namespace glmlite;

namespace {

template <class T>
Value numbers(ValueType type, const std::vector<T>& list) {
  return {type, true, std::string(reinterpret_cast<const char*>(list.data()), list.size() * sizeof(T)), {}, {}};
}
Value ids(const std::vector<int32_t>& list) { return numbers(ValueType::kInt32, list); }
Value bytes(const std::vector<uint8_t>& list) { return numbers(ValueType::kUint8, list); }
Value flag(bool on) { return {ValueType::kBool, false, std::string(1, on ? '\1' : '\0'), {}, {}}; }
Value string(const std::string& text) { return {ValueType::kString, false, text, {}, {}}; }
Value strings(const std::vector<std::string>& list) {
  Value value{ValueType::kString, true, {}, {}, {}};
  for (const std::string& text : list) {
    value.bytes += text;
    value.ends.push_back(value.bytes.size());
  }
  return value;
}

Metadata with(Metadata metadata, const std::string& key, const Value& value) {
  for (auto& [name, old] : metadata) {
    if (name == key) {
      old = value;
      return metadata;
    }
  }
  metadata.emplace_back(key, value);
  return metadata;
}
Metadata without(Metadata metadata, const std::string& key) {
  for (size_t i = metadata.size(); i-- > 0;) {
    if (metadata[i].first == key) metadata.erase(metadata.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return metadata;
}

// Classes: 0 a space, 1 the rest. The pattern ` ?[^ ]+| `: one state after nothing, one after a space, one after
// others.
const std::vector<uint32_t> kClasses{0 << 8 | 1, ' ' << 8 | 0, '!' << 8 | 1};
const std::vector<int32_t> kAutomata{1,     4,              // one pattern, four states
                                     1,     1,         1,   // begins in state 1
                                     2 * 2, 2 * 3,     0,   // 1: nothing yet
                                     1,     2 * 3 + 1, 1,   // 2: a space, which is a match
                                     1,     2 * 3 + 1, 1};  // 3: others

Metadata bpe() {
  return {{"glmlite.text.model", string("byte_bpe")},
          {"tokenizer.ggml.tokens", strings({"a", "b", "\xC4\xA0", "ab",
                                             "\xC4\xA0"
                                             "ab",
                                             "<|x|>", "sop", "[gMASK]", "unused", "\xC3\xA4", "\xC2\xBD"})},
          {"tokenizer.ggml.merges", strings({"a b", "\xC4\xA0 ab"})},
          {"glmlite.text.types", bytes({1, 1, 1, 1, 1, 3, 3, 3, 5, 1, 1})},
          {"glmlite.text.whole_words", flag(false)},
          {"glmlite.text.classes", numbers(ValueType::kUint32, kClasses)},
          {"glmlite.text.words", ids(kAutomata)},
          {"glmlite.text.special_texts", strings({"<|x|>", "<|", "sop", "[gMASK]"})},
          {"glmlite.text.special_ids", ids({5, 4, 6, 7})},
          {"glmlite.text.special_rules", bytes({0, 2, 1, 0})},
          {"glmlite.text.ends", ids({5})},
          {"glmlite.text.prefix", ids({7, 6})},
          {"glmlite.text.begins", ids({6, 7})}};
}

const std::string kBlank = "\xE2\x96\x81";

Metadata sentencepiece(const std::string& model) {
  std::vector<std::string> tokens{"<unk>", kBlank, "a", "b", "ab", kBlank + "ab", "aa", "<n>", "<|blank_3|>"};
  std::vector<uint8_t> types{2, 1, 1, 1, 1, 1, 1, 4, 4};
  std::vector<float> scores{0, -9, -5, -5, -6, -8, -7, 0, 0};
  if (model == "bpe") {
    const char* digits = "0123456789ABCDEF";
    for (size_t byte = 0; byte < 256; ++byte) {
      tokens.push_back(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
      types.push_back(6);
      scores.push_back(0);
    }
  }
  // A character map with one rule, A -> b: see tests/vocab.py.
  std::vector<uint8_t> map(4 + 1024);
  map[1] = 4;
  const auto unit = [&](size_t at, uint32_t value) {
    for (size_t i = 0; i < 4; ++i) map[4 + 4 * at + i] = static_cast<uint8_t>(value >> 8 * i);
  };
  unit(0, 1 << 10);
  unit(1 ^ 'A', 'A' | 1 << 8 | 2 << 10);
  unit(1 ^ 'A' ^ 2, 1u << 31);
  map.insert(map.end(), {'b', 0});
  return {{"glmlite.text.model", string(model)},
          {"tokenizer.ggml.tokens", strings(tokens)},
          {"glmlite.text.types", bytes(types)},
          {"glmlite.text.scores", numbers(ValueType::kFloat32, scores)},
          {"glmlite.text.characters", bytes(map)},
          {"glmlite.text.space_prefix", flag(true)},
          {"glmlite.text.remove_extra_space", flag(model == "unigram")},
          {"glmlite.text.blank_tokens", flag(model == "unigram")}};
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text, bool special = false) {
  std::vector<int32_t> out;
  tokenizer.encode(text, special, out);
  return out;
}

std::string decode(const Tokenizer& tokenizer, const std::vector<int32_t>& list, bool skip_special = false) {
  std::string out;
  TextStream stream(tokenizer, skip_special);
  for (int32_t id : list) stream.push(id, out);
  stream.finish(out);
  return out;
}

using Ids = std::vector<int32_t>;

}  // namespace

TEST(bytes_that_are_no_text_are_replaced) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\xFFz", "a\xEF\xBF\xBDz"},
      {"\xE4\xBD", "\xEF\xBF\xBD"},  // cut: one for what is there
      {"\xE4z", "\xEF\xBF\xBDz"},
      {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},                  // a surrogate
      {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"},                                  // overlong
      {"\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},  // above U+10FFFF
      {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
  };
  for (const auto& [text, want] : cases) CHECK(replaced(text) == want);
}

TEST(words_are_cut_and_merged) {
  const Tokenizer tokenizer(bpe());
  CHECK((encode(tokenizer, "ab ab") == Ids{3, 4}));
  CHECK((encode(tokenizer, "  ab") == Ids{2, 4}));
  CHECK((encode(tokenizer, "abc") == Ids{3}));  // a byte that is no token is left out
  CHECK(encode(tokenizer, "").empty());
  CHECK(decode(tokenizer, {3, 4, 8, 0}) == "ab aba");
}

TEST(special_tokens_count_where_they_are_asked_for) {
  const Tokenizer tokenizer(bpe());
  CHECK((encode(tokenizer, "a<|x|>b", true) == Ids{0, 5, 1}));
  CHECK((encode(tokenizer, "a<|x|>b") == Ids{0, 4, 1}));  // `<|` is found in plain text, too
  CHECK((encode(tokenizer, "[gMASK]sop", true) == Ids{7, 6}));
  CHECK((encode(tokenizer, "sop", true).empty()));  // not behind a mask token, and no letters of it are tokens
  CHECK((tokenizer.begin({2, 7, 0}) == Ids{7, 6, 0}));
  CHECK((tokenizer.begin({0, 7}) == Ids{7, 6, 0, 7}));
  CHECK(tokenizer.find("sop") == 6 && tokenizer.find("none") == -1);
  CHECK(tokenizer.is_special(5) && !tokenizer.is_special(0));
  CHECK_THROWS(std::invalid_argument, "token id 11, expected 0 to 10", tokenizer.piece(11));
  CHECK_THROWS(std::invalid_argument, "token id -1", tokenizer.begin({-1}));
  CHECK(decode(tokenizer, {0, 5, 1}) == "a<|x|>b" && decode(tokenizer, {0, 5, 1}, true) == "ab");
}

TEST(a_stream_gives_whole_characters) {
  const Tokenizer tokenizer(bpe());
  TextStream stream(tokenizer, false);
  std::string out;
  stream.push(9, out);   // E4
  stream.push(10, out);  // BD
  CHECK(out.empty());
  stream.push(0, out);
  CHECK(out ==
        "\xEF\xBF\xBD"
        "a");
  stream.push(9, out);
  stream.finish(out);
  CHECK(out ==
        "\xEF\xBF\xBD"
        "a\xEF\xBF\xBD");
}

TEST(pieces_merge_by_score) {
  const Tokenizer tokenizer(sentencepiece("bpe"));
  CHECK((encode(tokenizer, "ab") == Ids{5}));
  CHECK((encode(tokenizer, "aab") == Ids{1, 2, 4}));  // `ab` before `aa`
  CHECK((encode(tokenizer, "A") == Ids{1, 3}));       // the character map
  CHECK((encode(tokenizer, "\xC3\xA9") == Ids{1, 9 + 0xC3, 9 + 0xA9}));
  CHECK((encode(tokenizer, "a<n>a") == Ids{1, 2, 7, 2}));
  CHECK(decode(tokenizer, encode(tokenizer, " a  b\xC3\xA9")) == " a  b\xC3\xA9");
  CHECK(decode(tokenizer, {9 + 0xE4, 9 + 0xBD}) == "\xEF\xBF\xBD\xEF\xBF\xBD");  // one for each byte
}

TEST(the_likeliest_pieces) {
  const Tokenizer tokenizer(sentencepiece("unigram"));
  CHECK((encode(tokenizer, "aab") == Ids{1, 2, 4}));  // -5 - 6 against -7 - 5
  CHECK((encode(tokenizer, "aaa") == Ids{1, 2, 6}));  // of equals that with the longer last piece
  CHECK((encode(tokenizer,
                "a\xC3\xA9\xC3\xA8"
                "b") == Ids{1, 2, 0, 3}));  // unknown once
  CHECK((encode(tokenizer, "   ab\n") == Ids{1, 8, 4, 7}));
  CHECK(encode(tokenizer, " ").empty());
  CHECK(decode(tokenizer, {1, 8, 4, 7, 0}) == "   ab\n \xE2\x81\x87 ");
}

TEST(long_texts_and_threads) {
  const Tokenizer tokenizers[] = {Tokenizer(bpe()), Tokenizer(sentencepiece("bpe")),
                                  Tokenizer(sentencepiece("unigram"))};
  std::vector<std::string> texts;
  for (const std::string unit : {"a", " ", "ab", "\xE4\xBD\xA0", "\xFF", "[gMASK]", "<|blank_3|>"}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    texts.push_back(text);
  }
  for (const Tokenizer& tokenizer : tokenizers) {
    std::vector<size_t> counts(2);
    const auto work = [&](size_t i) {
      for (const std::string& text : texts) counts[i] += encode(tokenizer, text, i % 2 == 0).size();
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    CHECK(counts[0] > 0 && counts[1] > 0);
  }
}

TEST(tables_that_lie) {
  const Metadata good = bpe(), unigram = sentencepiece("unigram"), byte_pairs = sentencepiece("bpe");
  const auto words = [&](size_t at, int32_t value) {
    std::vector<int32_t> list = kAutomata;
    list[at] = value;
    return with(good, "glmlite.text.words", ids(list));
  };
  const auto classes = [&](const std::vector<uint32_t>& list) {
    return with(good, "glmlite.text.classes", numbers(ValueType::kUint32, list));
  };
  const std::pair<Metadata, const char*> cases[] = {
      {{}, "glmlite.text.model: is missing"},
      {with(good, "glmlite.text.model", string("wpm")), "glmlite.text.model: 'wpm' is not known"},
      {with(good, "glmlite.text.model", flag(true)), "glmlite.text.model: is a bool, expected text"},
      {without(good, "tokenizer.ggml.tokens"), "tokenizer.ggml.tokens: missing"},
      {with(good, "tokenizer.ggml.tokens", strings({"\xFF"})), "string 0 is not UTF-8"},
      {with(good, "glmlite.text.types", bytes({1})), "glmlite.text.types: has 1 entries, expected 11"},
      {with(good, "glmlite.text.types", bytes({0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})), "type 0, expected 1 to 6"},
      {without(good, "glmlite.text.whole_words"), "glmlite.text.whole_words: is missing"},
      {with(good, "glmlite.text.ends", ids({11})), "glmlite.text.ends: token id 11, expected 0 to 10"},
      {with(good, "glmlite.text.special_ids", ids({1})), "glmlite.text.special_ids: has 1 entries, expected 4"},
      {with(good, "glmlite.text.special_rules", bytes({1})), "glmlite.text.special_rules: has 1 entries"},
      {with(good, "glmlite.text.special_texts", strings({"", "b", "c", "d"})), "text 0 has 0 bytes"},
      {with(good, "tokenizer.ggml.merges", strings({"a c"})), "merge 0 is 'a c'"},
      {classes({}), "glmlite.text.classes"},
      {classes({5 << 8}), "no class of U+0000"},
      {classes({0, 9 << 8 | 1, 9 << 8 | 2}), "range 1 is empty"},
      {classes({0, 0x110000u << 8}), "range 1 is empty or no character's"},
      {words(0, 17), "17 patterns, expected at most 16"},
      {words(0, -1), "-1 patterns"},
      {words(0, 2), "shorter than it says"},
      {words(0, 0), "longer than it says"},
      {words(1, 0), "pattern 0 has 0 states"},
      {words(1, INT32_MAX), "states"},
      {words(1, 5), "shorter than it says"},
      {words(2, 4), "leads to a state that it does not have"},
      {words(5, 8), "leads to a state that it does not have"},
      {words(5, -2), "leads to a state that it does not have"},
      {without(unigram, "glmlite.text.scores"), "glmlite.text.scores: has 0 entries, expected 9"},
      {with(unigram, "glmlite.text.scores", numbers(ValueType::kFloat32, std::vector<float>(9, 1e38f * 10))),
       "not finite"},
      {with(unigram, "glmlite.text.types", bytes({1, 1, 1, 1, 1, 1, 1, 4, 4})), "no unknown token"},
      {with(unigram, "glmlite.text.types", bytes({2, 2, 1, 1, 1, 1, 1, 4, 4})), "two unknown tokens"},
      {with(unigram, "glmlite.text.types", bytes({2, 6, 1, 1, 1, 1, 1, 4, 4})), "a byte token that is not"},
      {with(unigram, "tokenizer.ggml.tokens", strings({"<unk>", "", "a", "b", "c", "d", "e", "f", "g"})),
       "token 1 has 0 bytes"},
      {with(unigram, "glmlite.text.characters", bytes({0, 4, 0, 0, 1})), "a trie of 1024 bytes in 5"},
      {with(unigram, "glmlite.text.characters", bytes({4, 0, 0, 0, 0, 0, 0, 0, 'x'})), "do not end with NUL"},
  };
  for (const auto& [metadata, message] : cases) CHECK_THROWS(FormatError, message, Tokenizer(metadata));

  // A walk in the character map that leaves it, and a value behind the replacements: the text stays as it is.
  for (uint32_t unit : {0x7FFFFC00u, 0x7FFFFD41u, 1u << 31 | 5u}) {
    Metadata metadata = unigram;
    for (auto& [name, value] : metadata) {
      if (name != "glmlite.text.characters") continue;
      for (size_t at : {size_t{0}, size_t{1 ^ 'A'}, size_t{1 ^ 'A' ^ 2}}) {
        value.bytes.replace(4 + 4 * at, 4, reinterpret_cast<const char*>(&unit), 4);
        CHECK((encode(Tokenizer(metadata), "aA")[1] == 2));
      }
    }
  }
}

TEST(tables_that_would_take_for_ever) {
  // ` *x`, which looks for an x from each blank of a run.
  const Tokenizer slow(with(with(bpe(), "glmlite.text.classes",
                                 numbers(ValueType::kUint32, std::vector<uint32_t>{1, ' ' << 8, '!' << 8 | 1})),
                            "glmlite.text.words", ids({1, 2, 1, 1, 1, 2, 0, 0})));
  CHECK_THROWS(FormatError, "glmlite.text.words: more than 16 steps a byte", encode(slow, std::string(10'000, ' ')));

  Metadata metadata = sentencepiece("unigram");
  for (auto& [name, value] : metadata) {
    if (name == "glmlite.text.characters") value.bytes.insert(4 + 1024, 200, 'b');
  }
  CHECK_THROWS(FormatError, "64 times its size", encode(Tokenizer(metadata), std::string(10'000, 'A')));
}

RUN_TESTS()
