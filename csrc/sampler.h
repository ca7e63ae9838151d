// From logits to a token.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "drafter.h"
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

constexpr int kDraft = 7;       // with the last token 8 rows, which kernels multiply at once
constexpr int kMostDraft = 64;  // that may be asked for

struct SamplerOptions {
  SamplerOptions();  // all off

  // Throws std::invalid_argument for a name that no option has.
  void set(const std::string& name, double value);

  std::vector<double> numbers;  // in the order of sampling_options()
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, double>> logit_bias;
  int logprobs = -1;  // -1: none; n >= 0: of the sampled token and of the n most likely
  std::vector<int32_t> stop;
  int draft = 0;  // tokens, at most, that are guessed and checked in one step
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
  // The tokens that the next draw may take: token t if bit t % 32 of words[t / 32] is set. Empty: all. Only the next
  // draw heeds it.
  void allow(std::vector<uint32_t> words);
  // Tokens that no draw takes from now on, where others can be had; instead of those named before.
  void forbid(const std::vector<int32_t>& tokens);
  // Draws from `vocab` finite logits and accepts the token.
  // Order: the allowed tokens; logit_bias; repetition (Keskar et al. 2019), presence and frequency penalties over the
  // window; then the largest at temperature 0, lowest id on ties; otherwise the top_k largest, softmax(logit /
  // temperature), the fewest most likely whose probabilities reach top_p (Holtzman et al. 2020), those of at least
  // min_p times the largest, one draw in order of likelihood. Log probabilities are those of the whole row.
  Sample sample(const float* logits, int64_t vocab);
  // A sample in two halves, for a device that draws: what it needs besides the logits, and what it drew. Throws
  // std::invalid_argument where nothing can be drawn from such a row.
  DrawRequest request(int64_t vocab) const;
  Sample take(int32_t token);
  // Whether a device cannot draw: what is asked for is not in a DrawRequest.
  bool needs_logits() const;
  bool stops(int32_t token) const { return stop_.count(token) != 0; }
  // What may be drawn next, `most` tokens or fewer, and what became of it: as a Drafter's. No draw depends on them.
  std::vector<int32_t> draft(int64_t most, double cost) const;
  void settle(size_t count, size_t right, double cost) { drafter_.settle(count, right, cost); }
  const Drafter::Totals& drafted() const { return drafter_.totals(); }

  // A state to go back to. `rewind` forgets what was accepted and drawn since; what `allow` said of the next draw
  // holds again.
  struct Mark {
    uint64_t draws;
    size_t seen, known;
  };
  Mark mark() const { return {draws_, seen_.size(), drafter_.length()}; }
  void rewind(const Mark& mark);

 private:
  void see(int32_t token);
  void forget(int32_t token);
  double next_uniform() const;
  bool masked() const { return !allowed_.empty() && allowed_at_ == draws_; }

  double option(size_t which) const { return options_.numbers[which]; }

  SamplerOptions options_;
  std::unordered_set<int32_t> stop_, biased_;
  size_t window_ = 0;
  std::vector<int32_t> seen_;                    // the last `window_` of it are the window
  std::unordered_map<int32_t, int32_t> counts_;  // of the tokens in the window
  uint64_t draws_ = 0;
  std::unordered_set<int32_t> forbidden_;
  std::vector<uint32_t> allowed_;
  uint64_t allowed_at_ = 0;  // the draw that heeds it
  Drafter drafter_;          // knows nothing where nothing is to be drafted
};

}  // namespace glmlite
