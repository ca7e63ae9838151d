// Products with matrices, their panels shared among the threads, and the barrier at which the next ones are fetched.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "packed_weights.h"
#include "step_buffers.h"
#include "team.h"

namespace glmlite {

constexpr int64_t kMemoryBoundRows = 32;  // for more, weights are read faster than multiplied with

class Products {
 public:
  static constexpr int64_t kUnitPanels = 2;  // of parts of a matrix: tiles are up to two panels wide

  Products(const Program& program, const CpuKernels& kernels, const PackedWeights& weights, const StepBuffers& buffers,
           Team& team);

  // Makes room for all threads of the team.
  void resize() { next_weights_.assign(static_cast<size_t>(team_.threads()), {}); }
  // Bytes of a thread's scratch that a step of so many tokens wants.
  size_t scratch_bytes(int64_t tokens) const;

  // Each is run by all threads of the team.
  void linear(const Op& op, const ops::Linear& kind, int thread);
  // With the swiglu that alone reads it: in pieces that stay in the cache.
  void linear_swiglu(const Op& op, const ops::Linear& kind, const Op& next, int thread);

  // One matrix for each head of x.
  void head_linear(const Op& op, const ops::HeadLinear& kind, int thread);

  // What the kernels take for panels [begin, end) of a matrix and so many rows: column c of the result goes to
  // y[t * stride + c].
  LinearArgs arguments(const Packed& w, const Activations& act, int64_t rows, int64_t begin, int64_t end, float* y,
                       int64_t stride, int thread) const;
  // silu(gate . x) * (up . x) for panels [begin, end) of gate, of which the first n rows count, and as many of up, from
  // its panel up_begin on: column c goes to y[t * stride + c]. In pieces that stay in the cache.
  void gated(const Packed& gate, const Packed& up, int64_t up_begin, int64_t n, const Activations& act, int64_t rows,
             int64_t begin, int64_t end, float* y, int64_t stride, int thread) const;

  // Panels of a matrix that a thread begins with. It reads memory fastest in long stretches, but all wait for the last
  // one: so each has a long one, and short ones are taken by whoever is free.
  int64_t first_panels(int64_t panels) const {
    return team_.size() > 1 ? panels * 3 / (4 * team_.size()) / kUnitPanels * kUnitPanels : panels;
  }
  // Calls work(begin, end) for parts of `panels`, until the team has done them all.
  template <class Work>
  void share_panels(int thread, int64_t panels, Work work) {
    const int64_t threads = team_.size(), large = first_panels(panels), shared = threads * large;
    const int64_t small = std::max(kUnitPanels, panels / (threads * 32) / kUnitPanels * kUnitPanels);
    if (large > 0) work(thread * large, (thread + 1) * large);
    for (int64_t task; team_.take((panels - shared + small - 1) / small, &task);)
      work(shared + task * small, std::min(shared + (task + 1) * small, panels));
  }

  // A barrier, after an op or in it. A thread that waits fetches the weights that it begins the next product with.
  void wait_after(int op, int thread);
  // A barrier at which a thread that waits fetches these, as far as there is time.
  void wait(Ahead next);
  // Panels of a matrix from the first on, so many or what a thread's cache has room for.
  static Ahead ahead(const Packed& w, int64_t first, int64_t count);

 private:
  template <class Work>
  static void each_piece(int64_t rows, int64_t from, int64_t to, Work work);
  float* piece(int thread) const;
  // swiglu of the rows [gate | up] of `piece`, of so many columns each.
  void swiglu_rows(const float* piece, int64_t rows, int64_t columns, float* y, int64_t stride) const;
  void multiply(const Op& op, const ops::Linear& kind, const Activations& act, int64_t begin, int64_t end, float* y,
                int64_t stride, int64_t first, int thread);
  int64_t panels_of(const ops::Linear& kind) const;

  const Program& program_;
  const CpuKernels& kernels_;
  const PackedWeights& weights_;
  const StepBuffers& buffers_;
  Team& team_;

  Ahead beginning(const Op& product, int done, int thread) const;

  // What each thread fetches while it waits for others: the weights that it begins the next product with.
  struct alignas(64) NextWeights : Ahead {
    int op = -1;
  };
  std::vector<NextWeights> next_weights_;
  int64_t head_columns_ = 0;       // that a head_linear multiplies, the most of any
  std::vector<int> next_product_;  // by op: the first product from it on, or -1; one more at the end
};

}  // namespace glmlite
