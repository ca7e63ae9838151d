// The values of the step in progress, and what each thread has for itself.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../buffers.h"
#include "../executor.h"
#include "../fusion.h"
#include "../memory.h"
#include "kernels.h"
#include "strips.h"
#include "team.h"

namespace glmlite {

class StepBuffers {
 public:
  StepBuffers(const Program& program, const Fusion& fusion, const Strips& strips, const CpuKernels& kernels,
              Team& team);

  // Room for steps of so many tokens and parts of so many rows, and `scratch` bytes for each thread. Throws
  // OutOfMemory, and has no room then.
  void resize(int64_t tokens, int64_t part_rows, size_t scratch);
  void release() {
    values_.reset();
    scratch_.reset();
  }
  size_t bytes() const { return values_.size() + scratch_.size(); }
  // fused: pairs of ops may be done as one.
  void begin(const Step& step, bool fused);
  // What follows is about these rows of the step: not while threads run.
  void enter(const Part& part);
  // Values are whole again.
  void end() {
    step_ = nullptr;
    first_ = 0;
    rows_ = tokens_;
  }

  const Step& step() const { return *step_; }
  int64_t tokens() const { return tokens_; }
  int64_t first() const { return first_; }  // of the tokens that the part has
  bool fused() const { return fused_; }
  Pair with_next(int op) const { return fused_ ? fusion_.with_next[op] : Pair::kNone; }
  int64_t rows(int id) const { return program_.values[id].selected ? static_cast<int64_t>(step_->rows.size()) : rows_; }
  float* value(int id) const {
    const int buffer = plan_.values[id].plain;
    return buffers_[buffer] + (plan_.buffers[buffer].room == Room::kTokens ? first_ * program_.values[id].width : 0);
  }
  bool quantizes(int id) const { return plan_.values[id].quantized >= 0; }
  uint8_t* scratch(int thread) const { return scratch_.data() + scratch_per_thread_ * static_cast<size_t>(thread); }

  // What a product reads of value `id`. A single row is rounded here, by each thread for itself: no thread waits for
  // another to do it.
  Activations activations(int id, int thread) const;
  // Rounds rows [begin, end) of a value that quantized weights read, unless there is only one.
  void quantize_rows(int id, int64_t begin, int64_t end) const;

  int64_t first_row(int thread, int64_t rows) const { return rows * thread / team_.size(); }
  template <class Fn>
  void each_row(int thread, int64_t rows, Fn fn) const {
    for (int64_t t = first_row(thread, rows); t < first_row(thread + 1, rows); ++t) fn(t);
  }
  // The thread's rows of the op's result, quantized some at a time, while they are in the cache.
  template <class Fn>
  void make_rows(int id, int thread, Fn make) const {
    const int64_t rows = this->rows(id), last = first_row(thread + 1, rows);
    for (int64_t begin = first_row(thread, rows); begin < last; begin += kRowsAtOnce) {
      const int64_t end = std::min(begin + kRowsAtOnce, last);
      for (int64_t t = begin; t < end; ++t) make(t);
      quantize_rows(id, begin, end);
    }
  }

 private:
  static constexpr int64_t kRowsAtOnce = 16;

  const Program& program_;
  const Fusion& fusion_;
  const CpuKernels& kernels_;
  const Team& team_;
  const BufferPlan plan_;
  std::vector<float*> buffers_;
  size_t row_bytes_ = 0;  // of a single row that a thread rounds for itself
  Memory values_;
  Memory scratch_;
  size_t scratch_per_thread_ = 0;
  size_t own_row_ = 0;  // of a thread's scratch: where it rounds a single row

  const Step* step_ = nullptr;
  int64_t tokens_ = 0;
  int64_t first_ = 0, rows_ = 0;  // of the part
  bool fused_ = true;
};

}  // namespace glmlite
