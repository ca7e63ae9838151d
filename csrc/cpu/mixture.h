// Mixtures of experts: which rows an expert has, and its products with them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "packed_weights.h"
#include "products.h"
#include "step_buffers.h"

namespace glmlite {

class Mixture {
 public:
  Mixture(const Program& program, const CpuKernels& kernels, const PackedWeights& weights, const StepBuffers& buffers,
          Products& products, Team& team);

  // Room for a step of so many tokens. Throws OutOfMemory.
  void resize(int64_t tokens);
  size_t scratch_bytes(int64_t tokens) const;  // of a thread
  size_t bytes() const { return memory_.size(); }
  void release() { memory_.reset(); }

  // Each is run by all threads of the team.
  void route(const Op& op, const ops::Route& kind, int thread);
  void run(const Op& op, const ops::Moe& kind, int thread);
  // After `run`, what it had of each expert.
  template <class Fn>
  void tell(const Op& op, const ops::Moe& kind, const Fn& fn) const {
    const Plan& plan = plans_[0];
    for (const int32_t expert : plan.busy) {
      const int32_t first = plan.first[expert];
      fn(op.out, ExpertRows{expert, plan.rows_of(expert), plan.rows.data() + first, buffers_.value(kind.x),
                            program_.values[kind.x].width, rows_.inner + first * kind.inner, kind.inner});
    }
  }

 private:
  // The rows of a step by expert. A slot is a row and one of its experts; slots of an expert lie together, rows
  // ascending.
  struct Plan {
    std::vector<int32_t> first;  // by expert: its first slot; one more at the end
    std::vector<int32_t> rows;   // by slot
    std::vector<int32_t> slots;  // by row, `used` each: where its experts, ascending, have it
    std::vector<int32_t> busy;   // the experts that have rows
    int64_t rows_of(int32_t expert) const { return first[expert + 1] - first[expert]; }
  };
  // Some of the experts that have rows.
  struct Experts {
    const int32_t *begin, *end;
    int64_t size() const { return end - begin; }
  };
  // What the threads share of a step.
  struct Rows {
    float* logits = nullptr;  // of a route: (tokens, experts)
    // By slot:
    float* x = nullptr;  // what float weights multiply
    uint8_t* x_blocks = nullptr;
    float* inner = nullptr;
    uint8_t* inner_blocks = nullptr;
    float* y = nullptr;
  };

  Rows rows_at(uint8_t* begin, int64_t tokens, size_t* bytes) const;
  uint8_t* own(int thread) const;
  const Plan& plan(const ops::Moe& kind, int thread);
  // What lies by slot, from slot `first` on.
  static Activations part(const float* x, const uint8_t* blocks, int64_t k, int64_t first);
  void gather(const ops::Moe& kind, const Plan& plan, int thread);
  void round_inner(const ops::Moe& kind, const Plan& plan, const Experts& experts);
  // The experts' products with their rows.
  void multiply(const Op& op, const ops::Moe& kind, const Plan& plan, const Experts& experts, int thread);
  // Calls work(expert, begin, end) for parts of `panels` of each expert, until the team has done them all.
  template <class Work>
  void share(const Experts& experts, int64_t panels, int thread, Work work);
  void combine(const Op& op, const ops::Moe& kind, const Plan& plan, int thread);

  const Program& program_;
  const CpuKernels& kernels_;
  const PackedWeights& weights_;
  const StepBuffers& buffers_;
  Products& products_;
  Team& team_;
  std::vector<Plan> plans_;  // by thread: each makes its own, so that none waits for it
  // The most of any op.
  int64_t routed_ = 0, experts_ = 0, used_ = 0, columns_ = 0, float_columns_ = 0, inner_ = 0, width_ = 0;
  Memory memory_;
  Rows rows_;
};

}  // namespace glmlite
