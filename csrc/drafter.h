// Guesses at how a text goes on.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace glmlite {

// Of one stream of tokens, from what it has seen: it goes on as it did after the last tokens the last time they stood
// together (Yang et al. 2023, "Inference with Reference: Lossless Acceleration of Large Language Models"). A step that
// checks guesses takes longer than one without, so how much is guessed depends on how often it was right.
class Drafter {
 public:
  void add(int32_t token);
  // Forgets all tokens but the first `length`.
  void cut(size_t length);
  size_t length() const { return tokens_.size(); }

  // The tokens that may come next, `most` of them or fewer. cost: what each adds to the time of a step, in steps.
  std::vector<int32_t> draft(size_t most, double cost) const;
  // What became of a draft, an empty one too: of `count` tokens the first `right` came.
  void settle(size_t count, size_t right, double cost);

  struct Totals {
    uint64_t drafted = 0, right = 0;
  };
  const Totals& totals() const { return totals_; }

 private:
  std::vector<int32_t> tokens_;
  std::vector<int32_t> earlier_;                  // by token: where it and the one before it stood last; -1: nowhere
  std::unordered_map<uint64_t, int32_t> latest_;  // by such a pair: where its second token stood last
  double credit_ = 0.5;                           // steps that wrong guesses may cost
  Totals totals_;
};

}  // namespace glmlite
