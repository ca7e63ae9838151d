#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace glmlite {

namespace {

enum Option {
  kTemperature,
  kTopK,
  kTopP,
  kMinP,
  kRepetitionPenalty,
  kPresencePenalty,
  kFrequencyPenalty,
  kPenaltyWindow,
  kOptionCount
};

// A row for each Option, in their order. top_p and min_p count after softmax; penalties and temperature change logits.
constexpr SamplingOption kOptions[] = {
    {"temperature", 0, 10'000, false, false, 0, 0.8},  // 0: the largest logit
    {"top_k", 0, INT32_MAX, false, true, 0, 0},
    {"top_p", 0, 1, true, false, 1, 0.8},
    {"min_p", 0, 1, false, false, 0, 0},
    {"repetition_penalty", 0, 100, true, false, 1, 1},
    {"presence_penalty", -100, 100, false, false, 0, 0},
    {"frequency_penalty", -100, 100, false, false, 0, 0},
    {"penalty_window", 0, 1 << 20, false, true, 256, 256},
};
static_assert(sizeof(kOptions) / sizeof(kOptions[0]) == kOptionCount, "an Option without a row, or a row without one");

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.10g", value);
  return text;
}

void require(bool ok, const std::string& name, double value, const std::string& expected) {
  if (!ok) throw std::invalid_argument(name + " is " + number(value) + ", expected " + expected);
}

// In lanes, so that compilers make vectors of them.
float largest_of(const float* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  float most = *std::max_element(lanes, lanes + kLanes);
  for (; i < n; ++i) most = std::max(most, x[i]);
  return most;
}

// Tokens in bins first to last are those that matter; weights of the bins before the first, and of all.
struct Range {
  int first, last;
  uint64_t before, total;
};

Range range_of(const Draw& draw, const float* logits, int64_t vocab, float max) {
  uint64_t in_bin[kBins] = {};  // how many with top_k, otherwise their weight
  constexpr int64_t kBlock = 256;
  int bins[kBlock];
  uint64_t weights[kBlock];
  std::fill_n(weights, kBlock, 1);
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const int64_t n = std::min(kBlock, vocab - begin);
    for (int64_t i = 0; i < n; ++i) bins[i] = draw.bin(logits[begin + i], max);
    if (draw.top_k == 0)
      for (int64_t i = 0; i < n; ++i) weights[i] = draw.weight(logits[begin + i], max);
    for (int64_t i = 0; i < n; ++i) in_bin[bins[i]] += weights[i];
  }
  const uint64_t total = std::accumulate(in_bin, in_bin + kBins - 1, uint64_t{0}), reach = draw.reach(total);
  int last = 0;
  uint64_t before = 0;
  while (before + in_bin[last] < reach && last < draw.last_bin) before += in_bin[last++];
  return draw.filters() ? Range{0, last, 0, total} : Range{last, last, before, total};
}

// From logits as adjusted. Only the few that matter are put in order.
int32_t draw_token(const Draw& draw, const float* logits, int64_t vocab) {
  const float max = largest_of(logits, vocab);
  if (draw.sharpness == 0 || !std::isfinite(max)) {
    const auto at = static_cast<int32_t>(std::find(logits, logits + vocab, max) - logits);
    return at < vocab ? at : 0;  // where all are NaN
  }

  const Range range = range_of(draw, logits, vocab, max);
  std::vector<uint64_t> keys;
  for (int64_t i = 0; i < vocab; ++i) {
    const int bin = draw.bin(logits[i], max);
    if (bin >= range.first && bin <= range.last) keys.push_back(key_of(logits[i], static_cast<int32_t>(i)));
  }
  std::sort(keys.begin(), keys.end(), std::greater<uint64_t>());
  const auto weight = [&](uint64_t key) { return draw.weight(logit_of(key), max); };
  uint64_t total = range.total;
  if (draw.top_k > 0) {
    keys.resize(std::min(keys.size(), static_cast<size_t>(draw.top_k)));
    total = 0;
    for (const uint64_t key : keys) total += weight(key);
  }

  const uint64_t limit = draw.limit(total);
  std::vector<uint64_t> sums;  // up to and with each key that is kept
  uint64_t sum = range.before;
  for (size_t i = 0; i < keys.size() && sum < limit; ++i) {
    const uint64_t w = weight(keys[i]);
    sums.push_back(sum += w >= draw.min_weight ? w : 0);
  }
  if (draw.filters()) total = sum;
  return token_of(keys[std::upper_bound(sums.begin(), sums.end(), draw.target(total)) - sums.begin()]);
}

int32_t draw_from_all(const DrawRequest& request, const float* logits, int64_t vocab) {
  if (request.adjustments.empty()) return draw_token(request.draw, logits, vocab);
  std::vector<float> adjusted(logits, logits + vocab);
  for (const Adjustment& a : request.adjustments) adjusted[a.token] = request.draw.adjusted(logits[a.token], a);
  return draw_token(request.draw, adjusted.data(), vocab);
}

// As from a row in which all but these tokens, ascending, weigh nothing: what is drawn depends on the order of tokens
// and not on their numbers.
int32_t draw_from(const std::vector<int32_t>& tokens, const DrawRequest& request, const float* logits) {
  std::vector<float> row(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) row[i] = logits[tokens[i]];
  for (const Adjustment& a : request.adjustments) {
    const auto at = std::lower_bound(tokens.begin(), tokens.end(), a.token);
    if (at != tokens.end() && *at == a.token) row[at - tokens.begin()] = request.draw.adjusted(logits[a.token], a);
  }
  return tokens[draw_token(request.draw, row.data(), static_cast<int64_t>(row.size()))];
}

int64_t words_of(int64_t vocab) { return (vocab + 31) / 32; }

// Of a word of a mask, the bits that are tokens of the vocabulary.
uint32_t bits_of(const std::vector<uint32_t>& words, int64_t index, int64_t vocab) {
  const int64_t left = vocab - 32 * index;
  return left < 32 ? words[index] & ((uint32_t{1} << left) - 1) : words[index];
}

std::vector<int32_t> tokens_of(const std::vector<uint32_t>& words, int64_t vocab) {
  std::vector<int32_t> tokens(static_cast<size_t>(32 * words_of(vocab)));
  size_t count = 0;
  for (int64_t i = 0; i < words_of(vocab); ++i) {
    const uint32_t bits = bits_of(words, i, vocab);
    if (bits == 0) continue;
    for (int bit = 0; bit < 32; ++bit) {  // without branches, which masks make hard to foresee
      tokens[count] = static_cast<int32_t>(32 * i + bit);
      count += bits >> bit & 1;
    }
  }
  tokens.resize(count);
  return tokens;
}

}  // namespace

const std::vector<SamplingOption>& sampling_options() {
  static const std::vector<SamplingOption> options(std::begin(kOptions), std::end(kOptions));
  return options;
}

SamplerOptions::SamplerOptions() {
  for (const SamplingOption& option : kOptions) numbers.push_back(option.off);
}

void SamplerOptions::set(const std::string& name, double value) {
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (name != kOptions[i].name) continue;
    numbers[i] = value;
    return;
  }
  throw std::invalid_argument("'" + name + "' is no option of the sampler");
}

Sampler::Sampler(SamplerOptions options)
    : options_(std::move(options)), stop_(options_.stop.begin(), options_.stop.end()) {
  const auto& o = options_;
  for (size_t i = 0; i < o.numbers.size(); ++i) {
    const SamplingOption& option = kOptions[i];
    const double value = o.numbers[i];
    const bool enough = option.above_least ? value > option.least : value >= option.least;
    require(enough && value <= option.most && (!option.whole || value == std::floor(value)), option.name, value,
            (option.above_least ? "more than " : "") + number(option.least) + " to " + number(option.most));
  }
  require(o.draft >= 0 && o.draft <= kMostDraft, "draft", o.draft, "0 to " + number(kMostDraft));
  require(o.logprobs >= -1 && o.logprobs <= 1000, "logprobs", o.logprobs, "-1 (none) to 1000");
  for (const auto& [token, bias] : o.logit_bias) {
    require(token >= 0, "logit_bias token", token, "an id of the vocabulary");
    require(bias < 1e6, "logit_bias", bias, "a number below a million, or -inf");
    require(biased_.insert(token).second, "logit_bias token", token, "each once");
  }
  window_ = static_cast<size_t>(option(kPenaltyWindow));
}

void Sampler::accept(const int32_t* tokens, int64_t count) {
  if (options_.draft > 0) std::for_each(tokens, tokens + count, [&](int32_t token) { drafter_.add(token); });
  for (int64_t i = std::max<int64_t>(0, count - static_cast<int64_t>(window_)); i < count; ++i) see(tokens[i]);
}

void Sampler::see(int32_t token) {
  if (window_ == 0) return;
  seen_.push_back(token);
  ++counts_[token];
  if (seen_.size() > window_) forget(seen_[seen_.size() - 1 - window_]);
}

void Sampler::forget(int32_t token) {
  const auto it = counts_.find(token);
  if (--it->second == 0) counts_.erase(it);
}

void Sampler::rewind(const Mark& mark) {
  draws_ = mark.draws;
  drafter_.cut(mark.known);
  for (; seen_.size() > mark.seen; seen_.pop_back()) {
    forget(seen_.back());
    if (seen_.size() > window_) ++counts_[seen_[seen_.size() - 1 - window_]];
  }
}

void Sampler::forbid(const std::vector<int32_t>& tokens) {
  for (const int32_t token : tokens) require(token >= 0, "forbid: token", token, "an id of the vocabulary");
  forbidden_ = {tokens.begin(), tokens.end()};
}

void Sampler::allow(std::vector<uint32_t> words) {
  allowed_ = std::move(words);
  allowed_at_ = draws_;
}

// splitmix64 (Steele et al. 2014) of the seed, at the next draw's place in its sequence: 53 bits in [0, 1).
double Sampler::next_uniform() const {
  uint64_t z = options_.seed + (draws_ + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

DrawRequest Sampler::request(int64_t vocab) const {
  const auto& o = options_;
  if (vocab > kMaxVocab)
    throw std::invalid_argument("a vocabulary of " + std::to_string(vocab) + ", sampling takes " +
                                std::to_string(kMaxVocab) + " at most");
  if (masked()) {
    const auto words = static_cast<int64_t>(allowed_.size());
    if (words != words_of(vocab))
      throw std::invalid_argument("allow: " + std::to_string(words) + " words of 32 tokens, a vocabulary of " +
                                  std::to_string(vocab) + " takes " + std::to_string(words_of(vocab)));
    int64_t i = 0;
    while (i < words && bits_of(allowed_, i, vocab) == 0) ++i;
    if (i == words) throw std::invalid_argument("allow: none of the vocabulary's tokens, expected at least one");
  }
  DrawRequest request{};
  Draw& d = request.draw;
  if (option(kTemperature) > 0) d.sharpness = std::min(1 / option(kTemperature), 1e30);  // so that all are finite
  d.bins_per_logit = static_cast<float>(kBinsPerUnit * d.sharpness);
  const auto top_k = static_cast<int64_t>(option(kTopK));
  d.top_k = top_k < vocab ? top_k : 0;
  d.top_p = option(kTopP);
  constexpr double kOne = uint64_t{1} << kWeightBits;
  d.min_weight = std::max<uint64_t>(1, static_cast<uint64_t>(std::ceil(option(kMinP) * kOne)));
  // Where weights are rounded up to min_weight; top_k's sum of weights has those that min_p leaves out.
  const double furthest = -std::log((static_cast<double>(d.min_weight) - 0.75) / kOne);
  d.last_bin = d.top_k > 0 ? kBins - 2 : std::min(kBins - 2, static_cast<int>(kBinsPerUnit * furthest) + 1);
  d.u = next_uniform();
  d.repetition = option(kRepetitionPenalty);
  d.presence = option(kPresencePenalty);
  d.frequency = option(kFrequencyPenalty);

  for (const int32_t token : forbidden_)
    if (token < vocab) request.adjustments.push_back({token, 0, -std::numeric_limits<double>::infinity()});
  const bool penalties =
      option(kRepetitionPenalty) != 1 || option(kPresencePenalty) != 0 || option(kFrequencyPenalty) != 0;
  for (const auto& [token, bias] : o.logit_bias) {
    if (token >= vocab)
      throw std::invalid_argument("logit_bias: token " + std::to_string(token) + ", the vocabulary has " +
                                  std::to_string(vocab));
    if (forbidden_.count(token)) continue;
    const auto seen = penalties ? counts_.find(token) : counts_.end();
    request.adjustments.push_back({token, seen == counts_.end() ? 0 : seen->second, bias});
  }
  if (!penalties) return request;
  for (const auto& [token, count] : counts_)
    if (token >= 0 && token < vocab && !biased_.count(token) && !forbidden_.count(token))
      request.adjustments.push_back({token, count, 0.0});
  return request;
}

std::vector<int32_t> Sampler::draft(int64_t most, double cost) const {
  most = std::min<int64_t>(most, options_.draft);
  return most <= 0 || masked() ? std::vector<int32_t>() : drafter_.draft(static_cast<size_t>(most), cost);
}

bool Sampler::needs_logits() const { return options_.logprobs >= 0 || masked(); }

Sample Sampler::sample(const float* logits, int64_t vocab) {
  const DrawRequest request = this->request(vocab);
  const int32_t token =
      masked() ? draw_from(tokens_of(allowed_, vocab), request, logits) : draw_from_all(request, logits, vocab);
  Sample result = take(token);
  if (options_.logprobs < 0) return result;

  const double max = largest_of(logits, vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - max);
  const double log_sum = max + std::log(sum);
  result.logprob = logits[token] - log_sum;
  std::vector<uint64_t> keys(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < vocab; ++i) keys[i] = key_of(logits[i], static_cast<int32_t>(i));
  const auto n = std::min<int64_t>(options_.logprobs, vocab);
  std::partial_sort(keys.begin(), keys.begin() + n, keys.end(), std::greater<uint64_t>());
  for (int64_t i = 0; i < n; ++i) result.top.emplace_back(token_of(keys[i]), logit_of(keys[i]) - log_sum);
  return result;
}

Sample Sampler::take(int32_t token) {
  ++draws_;
  accept(&token, 1);
  return {token, std::numeric_limits<double>::quiet_NaN(), {}};
}

}  // namespace glmlite
