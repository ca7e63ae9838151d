// From logits to a token.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "sampling.h"

namespace glmlite {

// A number that says how to sample. The table of all, in sampler.cpp, is the only place that lists them, with their
// bounds; Python reads it.
struct SamplingOption {
  const char* name;
  double least, most;
  bool above_least;  // `least` itself is not allowed
  bool whole;
  double off;    // without effect
  double usual;  // where neither a caller nor a file says
};

const std::vector<SamplingOption>& sampling_options();

struct SamplerOptions {
  SamplerOptions();  // all off

  // Throws std::invalid_argument for a name that no option has.
  void set(const std::string& name, double value);

  std::vector<double> numbers;  // in the order of sampling_options()
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, double>> logit_bias;
  int logprobs = -1;  // -1: none; n >= 0: of the sampled token and of the n most likely
  std::vector<int32_t> stop;
};

struct Sample {
  int32_t token;
  double logprob;                               // NaN unless asked for
  std::vector<std::pair<int32_t, double>> top;  // most likely first
};

// One stream of tokens. The n-th draw of a seed is a fixed number, so a stream does not depend on what else runs.
class Sampler {
 public:
  explicit Sampler(SamplerOptions options);  // throws std::invalid_argument
  void accept(const int32_t* tokens, int64_t count);
  // Draws from `vocab` finite logits and accepts the token.
  // Order: logit_bias; repetition (Keskar et al. 2019), presence and frequency penalties over the window; then the
  // largest at temperature 0, lowest id on ties; otherwise the top_k largest, softmax(logit / temperature), the fewest
  // most likely whose probabilities reach top_p (Holtzman et al. 2020), those of at least min_p times the largest, one
  // draw in order of likelihood.
  Sample sample(const float* logits, int64_t vocab);
  // A sample in two halves, for a device that draws: what it needs besides the logits, and what it drew.
  DrawRequest request(int64_t vocab) const;
  Sample take(int32_t token);
  // Whether a device cannot draw: what is asked for is not in a DrawRequest.
  bool needs_logits() const;
  bool stops(int32_t token) const { return stop_.count(token) != 0; }

 private:
  void accept(int32_t token);
  double next_uniform() const;

  double option(size_t which) const { return options_.numbers[which]; }

  SamplerOptions options_;
  std::unordered_set<int32_t> stop_, biased_;
  std::deque<int32_t> window_;
  std::unordered_map<int32_t, int32_t> counts_;  // of the tokens in the window
  uint64_t draws_ = 0;
};

}  // namespace glmlite
