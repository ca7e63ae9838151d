// What a program takes of a GPU's memory, and where in it everything lies; computed before anything is loaded.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../buffers.h"
#include "../executor.h"
#include "../fusion.h"
#include "../weights.h"
#include "kernels.h"

namespace glmlite::cuda {

constexpr size_t align256(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Steps of at most so many tokens are captured as graphs.
constexpr int64_t kGraphTokens = 16;
// Room for a step's values is made while loading for so many tokens and rows of logits, and grows for larger steps.
constexpr int64_t kStepTokens = 512, kStepRows = 16;
constexpr size_t kMaxAdjustments = 1024;  // of a row of logits; a row with more is drawn from on the CPU

// The context that kernels are started for: steps below it share a graph. At least `context`, in whole pages.
int64_t context_bound(int64_t context);

class Plan {
 public:
  // Throws std::invalid_argument for shapes that have no kernels.
  Plan(const Program& program, int64_t pages, KvType kv_type);

  WeightPlan weights;
  std::vector<size_t> rope_offsets;   // of RopeTables: freq (f64), first, second, axis (int32), each align256
  std::vector<size_t> cache_offsets;  // of attentions' KV pages
  std::vector<size_t> cache_page_bytes;
  size_t weight_bytes = 0;  // weights and rope tables
  size_t kv_bytes = 0;

  Fusion fusion;
  BufferPlan buffers;

  // Sizes of a step that its scratch memory depends on.
  struct StepSize {
    int64_t tokens, rows, draws;
    size_t upload;    // bytes of its state
    size_t partials;  // bytes of attention's partial results
  };
  // The size of the largest step that room is made for while loading.
  StepSize largest() const;
  // Bytes of attention's partial results in a step of so many tokens.
  size_t partial_bytes(int64_t tokens, int64_t context) const;
  // Upload, turns, partials, buffers, one after the other. What draws need takes the partials' place after the last.
  struct Scratch {
    std::vector<size_t> turns;  // by rope
    size_t partials, draws;
    std::vector<size_t> buffers;
    size_t bytes;
  };
  Scratch scratch(const StepSize& size) const;

  struct AttentionShape {
    int heads, kv_heads, head_dim;
  };
  std::vector<AttentionShape> attentions;  // by cache
  std::vector<int> inputs;                 // by op: which of the inputs it is, or -1

 private:
  static void check(const Op& op);
  void plan_ropes(const Program& program);
  void plan_cache(const Program& program, KvType kv_type);

  const int64_t pages_;
  const int64_t vocab_;
  int64_t input_width_ = 0;
  int inputs_ = 0;
  std::vector<size_t> pairs_;  // by rope
};

}  // namespace glmlite::cuda
