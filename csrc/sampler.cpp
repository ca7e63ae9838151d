#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace glmlite {

namespace {

void require(bool ok, const char* name, double value, const char* expected) {
  if (!ok) throw std::invalid_argument(std::string(name) + ": " + std::to_string(value) + ", expected " + expected);
}

struct Candidate {
  float logit;
  int32_t token;
  double p;
};

// Most likely first; of equals the lower id, so that the order is one and the same everywhere.
bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

}  // namespace

Sampler::Sampler(SamplerOptions options)
    : options_(std::move(options)), stop_(options_.stop.begin(), options_.stop.end()) {
  const auto& o = options_;
  require(o.temperature >= 0 && o.temperature <= 1e4, "temperature", o.temperature, "0 to 10000");
  require(o.top_k >= 0, "top_k", static_cast<double>(o.top_k), "0 (off) or more");
  require(o.top_p > 0 && o.top_p <= 1, "top_p", o.top_p, "more than 0, at most 1");
  require(o.min_p >= 0 && o.min_p <= 1, "min_p", o.min_p, "0 to 1");
  require(o.repetition_penalty > 0 && o.repetition_penalty <= 100, "repetition_penalty", o.repetition_penalty,
          "more than 0, at most 100 (1: off)");
  require(std::abs(o.presence_penalty) <= 100, "presence_penalty", o.presence_penalty, "-100 to 100");
  require(std::abs(o.frequency_penalty) <= 100, "frequency_penalty", o.frequency_penalty, "-100 to 100");
  require(o.penalty_window >= 0 && o.penalty_window <= (1 << 20), "penalty_window",
          static_cast<double>(o.penalty_window), "0 to 1048576");
  require(o.logprobs >= -1 && o.logprobs <= 1000, "logprobs", o.logprobs, "-1 (none) to 1000");
  for (const auto& [token, bias] : o.logit_bias) {
    require(token >= 0, "logit_bias token", token, "an id of the vocabulary");
    require(bias < 1e6, "logit_bias", bias, "a number below a million, or -inf");
  }
}

void Sampler::accept(const int32_t* tokens, int64_t count) {
  for (int64_t i = std::max<int64_t>(0, count - options_.penalty_window); i < count; ++i) accept(tokens[i]);
}

void Sampler::accept(int32_t token) {
  if (options_.penalty_window == 0) return;
  window_.push_back(token);
  ++counts_[token];
  if (static_cast<int64_t>(window_.size()) > options_.penalty_window) {
    const auto it = counts_.find(window_.front());
    if (--it->second == 0) counts_.erase(it);
    window_.pop_front();
  }
}

// splitmix64 (Steele et al. 2014) of the seed, at the draw's place in its sequence: 53 bits in [0, 1).
double Sampler::next_uniform() {
  uint64_t z = options_.seed + ++draws_ * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

int32_t Sampler::draw(const float* logits, int64_t vocab) {
  if (options_.temperature == 0) return static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);

  std::vector<Candidate> all(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < vocab; ++i) all[i] = {logits[i], static_cast<int32_t>(i), 0};
  if (options_.top_k > 0 && options_.top_k < vocab) {
    std::nth_element(all.begin(), all.begin() + options_.top_k - 1, all.end(), likelier);
    all.resize(static_cast<size_t>(options_.top_k));
    std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.token < b.token; });
  }
  const double max =
      std::max_element(all.begin(), all.end(), [](auto& a, auto& b) { return a.logit < b.logit; })->logit;
  double total = 0;
  for (Candidate& c : all) total += c.p = std::exp((static_cast<double>(c.logit) - max) / options_.temperature);

  // The most likely, in order, until top_p or min_p ends them. Sorted in growing pieces: few are wanted of many.
  const double u = next_uniform();
  const bool filtered = options_.top_p < 1 || options_.min_p > 0;
  std::vector<double> reached;  // sum of probabilities up to and with each one kept
  size_t sorted = 0;
  double sum = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (i == sorted) {
      sorted = std::min(all.size(), std::max<size_t>(64, sorted * 4));
      std::partial_sort(all.begin() + static_cast<std::ptrdiff_t>(i), all.begin() + static_cast<std::ptrdiff_t>(sorted),
                        all.end(), likelier);
    }
    if (filtered && i > 0 && (sum >= options_.top_p * total || all[i].p < options_.min_p * all[0].p)) break;
    reached.push_back(sum += all[i].p);
    if (!filtered && sum > u * total) break;  // nothing is cut off, so what is left cannot matter
  }
  const auto it = std::upper_bound(reached.begin(), reached.end(), u * (filtered ? sum : total));
  const auto index = std::min<size_t>(static_cast<size_t>(it - reached.begin()), reached.size() - 1);
  return all[index].token;
}

Sample Sampler::sample(const float* logits, int64_t vocab) {
  Sample result{0, std::numeric_limits<double>::quiet_NaN(), {}};
  const bool penalties = !counts_.empty() && (options_.repetition_penalty != 1 || options_.presence_penalty != 0 ||
                                              options_.frequency_penalty != 0);
  if (options_.logit_bias.empty() && !penalties) {
    result.token = draw(logits, vocab);
  } else {
    std::vector<float> adjusted(logits, logits + vocab);
    for (const auto& [token, bias] : options_.logit_bias) {
      if (token >= vocab)
        throw std::invalid_argument("logit_bias: token " + std::to_string(token) + ", the vocabulary has " +
                                    std::to_string(vocab));
      adjusted[token] = static_cast<float>(adjusted[token] + bias);
    }
    if (penalties) {
      for (const auto& [token, count] : counts_) {
        if (token < 0 || token >= vocab) continue;
        double l = adjusted[token];
        l = l > 0 ? l / options_.repetition_penalty : l * options_.repetition_penalty;
        l -= options_.presence_penalty + static_cast<double>(count) * options_.frequency_penalty;
        adjusted[token] = static_cast<float>(l);
      }
    }
    result.token = draw(adjusted.data(), vocab);
  }

  if (options_.logprobs >= 0) {
    const double max = *std::max_element(logits, logits + vocab);
    double sum = 0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - max);
    const double log_sum = max + std::log(sum);
    result.logprob = logits[result.token] - log_sum;
    std::vector<Candidate> all(static_cast<size_t>(vocab));
    for (int64_t i = 0; i < vocab; ++i) all[i] = {logits[i], static_cast<int32_t>(i), 0};
    const auto n = std::min<int64_t>(options_.logprobs, vocab);
    std::partial_sort(all.begin(), all.begin() + n, all.end(), likelier);
    for (int64_t i = 0; i < n; ++i) result.top.emplace_back(all[i].token, all[i].logit - log_sum);
  }
  accept(result.token);
  return result;
}

}  // namespace glmlite
