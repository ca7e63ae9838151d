// Steps over sequences: what a model does with tokens, whatever device runs it.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "executor.h"
#include "kv.h"
#include "sampler.h"

namespace glmlite {

constexpr int32_t kGiven = -1;  // a token without an id

// What one sequence does in a call: enter `tokens`, then, with a sampler, up to `budget` sampled tokens.
struct Work {
  int sequence = 0;
  std::vector<int32_t> tokens;
  std::vector<Position> positions;   // one per token
  int64_t visible = 0;               // 0: causal; n: each token sees the first n entries
  std::shared_ptr<Sampler> sampler;  // no other work's
  int64_t budget = 1;
  Position next_position{};           // of the first sampled token
  Position position_step{{1, 1, 1}};  // from one sampled token to the next
  std::vector<float> input;           // (tokens, Program::input) rows that the program is given
  std::vector<float> embeddings;      // rows for the tokens that are kGiven, in their order
  size_t drafted = 0;                 // tokens at the end that the engine has put there: what may be drawn
};

// How long steps take that write for so many sequences, and so what a token costs that is drafted.
class DraftCost {
 public:
  explicit DraftCost(size_t works);
  // Of a token more, in steps of a sequence.
  double value() const { return value_; }
  void note(size_t drafted, double ms);

 private:
  double works_, value_;
  double plain_ = 0;  // ms of a step without drafts; 0: unknown
};

struct EngineOptions {
  int64_t kv_tokens = 0;
  KvType kv_type = KvType::kF16;
  int threads = 0;                        // as in ExecutorOptions
  bool adaptive = false;                  // likewise
  Priority priority = Priority::kNormal;  // likewise
  std::string isa;
  int device = -1;                           // as in ExecutorOptions
  int gpu_layers = -1;                       // likewise
  std::shared_ptr<const PackedFile> packed;  // likewise
  int64_t weight_room = -1;                  // likewise
  ExecutorFactory make = make_cpu_executor;
};

// Pages of KV cache that a program needs for so many tokens besides its prefix: `tokens`' own, and the prefix's.
struct CachePages {
  CachePages(const Program& program, int64_t kv_tokens);
  int64_t tokens, total;
};

// One call computes at a time; calls from other threads wait. Any call that throws leaves sequences and samplers as
// they were before it. After `close` every call throws std::invalid_argument.
class Engine {
 public:
  Engine(const Gguf& file, const std::vector<OpSpec>& ops, const EngineOptions& options, const LoadProgress& progress);

  int new_sequence();
  int fork(int sequence, int64_t length);
  void truncate(int sequence, int64_t length);
  void free(int sequence);
  int64_t length(int sequence);
  int64_t kv_free();

  // Logits (rows, vocab) of the works' tokens, counted one work after another.
  std::vector<float> step(const std::vector<Work>& works, const std::vector<int32_t>& rows, const CancelFlag* cancel,
                          const Watch* watch = nullptr);
  // One step for all works, then further ones for those that sample, until max_ms have passed or none is left. A step
  // also takes what samplers draft, and ends a sequence's part where a token that is drawn is another: the samples are
  // the same, and come in fewer steps.
  std::vector<std::vector<Sample>> run(const std::vector<Work>& works, double max_ms, const CancelFlag* cancel);
  void close();

  struct Info {
    int64_t vocab, prefix, kv_tokens;
    size_t weight_bytes, kv_bytes;
    std::string isa;
  };
  const Info& info() const { return info_; }
  size_t scratch_bytes();
  void release();           // the memory of activations, which the next step takes anew
  double progress() const;  // of the step in progress; safe while one runs
  // As an Executor's, and from any thread as well; 0 once closed.
  int threads() const;
  int threads_now() const;
  // 1 to 1024: of the next steps, at most. Throws std::invalid_argument.
  void set_threads(int threads);

 private:
  // Restores lengths (and samplers) unless `keep` is called.
  class Rollback;

  void require_open() const;
  // One step of works whose pages are reserved, and what their samplers draw, by work: one token, and one more for each
  // guess that was drawn. Ends with what was drawn but for the last token in the cache.
  std::vector<std::vector<Sample>> write(std::vector<Work>* works, const CancelFlag* cancel);
  void add_draft(Work* work, size_t written, double cost) const;
  // Of the n-th token that is sampled; none where the model has no further one.
  std::optional<Position> position_of(const Work& work, size_t n) const;
  StepResult advance(const std::vector<Work>& works, const std::vector<int32_t>& rows,
                     std::vector<std::optional<DrawRequest>> requests, const CancelFlag* cancel, const Watch* watch);
  void plan(const std::vector<Work>& works, const std::vector<int32_t>& rows, Step* step);
  bool reserve(const std::vector<Work>& works);

  std::mutex mutex_;
  std::shared_ptr<Executor> executor_;  // null once closed
  std::unique_ptr<PageTable> table_;
  int base_ = 0;  // sequence that holds the program's prefix
  int64_t tokens_ = 0;
  int64_t axis_limit_[kAxes];
  int64_t input_ = 0;
  int64_t embedding_ = 0;  // columns of the table; 0: there is none
  bool selects_ = false, keeps_ = true;
  Info info_;
  std::map<size_t, DraftCost> draft_costs_;  // by how many works a step has
};

}  // namespace glmlite
