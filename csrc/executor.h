// What the engine asks of a device: run a program's steps and keep its weights and KV pages.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/this_thread.h"
#include "packed_file.h"
#include "program.h"
#include "sampling.h"

namespace glmlite {

// The tokens of one sequence in a step, in order: they are the step's tokens [begin, end).
struct Run {
  int64_t begin, end;
  const int32_t* pages;  // the sequence's pages: entry e of its cache lies in pages[e / kPageTokens]
};

// One step, planned by the engine. Arrays have one element per token.
struct Step {
  std::vector<int32_t> tokens;  // ids; -1 - r: none, but row r of those that are given
  std::vector<int32_t> positions[kAxes];
  std::vector<int64_t> entry;    // where the token's key and value go in its sequence's cache
  std::vector<int64_t> visible;  // it sees the entries below this
  std::vector<Run> runs;
  std::vector<int32_t> rows;                         // tokens whose logits are wanted, ascending
  std::vector<std::optional<DrawRequest>> requests;  // by row: a token drawn from the logits does as well; may be empty
  const float* input = nullptr;                      // (tokens, Program::input) rows that the program is given
  const float* given = nullptr;                      // (given_rows, columns of the embedding)
  int64_t given_rows = 0;
};

struct StepResult {
  const float* logits = nullptr;  // (rows, vocab), valid until the next call; garbage where a token was drawn
  std::vector<int32_t> tokens;    // by row: as requested, or -1: not drawn; empty: none was
  int64_t bad_token = -1;         // the first token whose logits, keys or values are not finite
};

// Set by any thread, seen between ops, and in attention between tiles.
struct CancelFlag {
  std::atomic<bool> set{false};
  const CancelFlag* also = nullptr;  // another one that counts, too, and outlives this

  bool is_set() const {
    return set.load(std::memory_order_relaxed) || (also && also->set.load(std::memory_order_relaxed));
  }
};

// What an expert of a mixture reads in a step.
struct ExpertRows {
  int32_t expert;
  int64_t count;
  const int32_t* rows;  // which of x it has
  const float* x;       // (rows of the step, columns)
  int64_t columns;
  const float* inner;  // (count, width), what enters its down
  int64_t width;
};

// Told of a step's numbers while it runs. For tracing.
struct Watch {
  // After each op, its result: count x width.
  std::function<void(int value, const float* rows, int64_t count, int64_t width)> value;
  // Before the value of a mixture. May be empty.
  std::function<void(int value, const ExpertRows&)> expert;
};

class Executor {
 public:
  virtual ~Executor() = default;
  // Entries of the cache that the step writes are garbage if it throws: Cancelled, OutOfMemory.
  virtual StepResult run(const Step& step, const CancelFlag* cancel, const Watch* watch) = 0;
  // Calls fn(i) for each i below `count`, on the threads that steps have on the CPU. Throws what an fn throws.
  virtual void share(int64_t count, const std::function<void(int64_t)>& fn) {
    for (int64_t i = 0; i < count; ++i) fn(i);
  }
  virtual void copy_page(int32_t from, int32_t to) = 0;
  // Writes the program's prefix into the pages of the first sequence.
  virtual void write_prefix(const std::vector<int32_t>& pages) = 0;

  virtual size_t weight_bytes() const = 0;
  virtual size_t kv_bytes() const = 0;
  virtual size_t scratch_bytes() const = 0;
  // Gives back the memory of the last step, which the next takes anew.
  virtual void release() = 0;
  // Of a step, at most. Both are for any thread, at any time; a new number counts from the next step on. `set_threads`
  // throws std::invalid_argument where steps have no threads.
  virtual int threads() const = 0;
  virtual void set_threads(int threads) = 0;
  virtual int threads_now() const = 0;  // that the step in progress, or the last one, has
  virtual const char* isa() const = 0;
  // How much of the step in progress is done, 0 to 1.
  virtual double progress() const = 0;
};

// progress(done, total) in bytes of the file, every 20 ms or so; false cancels the load (Cancelled).
using LoadProgress = std::function<bool(uint64_t done, uint64_t total)>;

struct ExecutorOptions {
  int64_t pages = 0;  // of the KV cache
  KvType kv_type = KvType::kF16;
  int threads = 0;                        // of a step; 0: default_threads()
  bool adaptive = false;                  // steps have fewer threads while others keep the cores busy
  Priority priority = Priority::kNormal;  // of what computes on the CPU
  std::string isa;                        // of the CPU's kernels; "": the best there is
  int device = -1;                        // index of a GPU; -1: none
  int gpu_layers = -1;  // how many of the last layers, and all that follows them, run on it; -1, or more than there
                        // are: all, and what comes before them
  // Of the CPU: its weights as a file has them, instead of packing them; null: none.
  std::shared_ptr<const PackedFile> packed;
  int64_t weight_room = -1;  // bytes of memory for weights, of which the others are read from `packed` when they are
                             // needed; -1: it is mapped
};

// Makes an executor for a device. The file that the program's tensors are in stays open until it returns. Throws
// FileError, OutOfMemory, Cancelled, std::invalid_argument; std::runtime_error where the device cannot be had.
using ExecutorFactory = std::unique_ptr<Executor> (*)(Program program, const ExecutorOptions& options,
                                                      const LoadProgress& progress);

std::unique_ptr<Executor> make_cpu_executor(Program program, const ExecutorOptions& options,
                                            const LoadProgress& progress);

// Bytes of a page of the KV cache, in all layers.
size_t cpu_page_bytes(const Program& program, KvType type);

// Of a program's weights as the CPU packs them.
struct PackedBytes {
  size_t all, experts;  // experts: of mixtures, which are in `all`
};
PackedBytes cpu_weight_bytes(const Program& program);
// key: of what its tensors hold.
PackedFile::Identity cpu_packed_identity(const Program& program, const std::array<uint8_t, 32>& key);
// Packs a program's weights into a file from `begin` on, with so many threads, 0: default_threads(). Needs little
// memory. Throws as an ExecutorFactory.
void cpu_pack(const Program& program, const Output& output, uint64_t begin, int threads, Priority priority,
              const LoadProgress& progress);

// Runs the two parts of Program::split, one after the other; `first_ops`: ops of the first. One copy of the residual
// rows goes across per step.
std::unique_ptr<Executor> make_hybrid_executor(std::unique_ptr<Executor> first, std::unique_ptr<Executor> second,
                                               size_t first_ops, size_t second_ops);

}  // namespace glmlite
