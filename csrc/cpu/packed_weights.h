// A program's weights as the kernels read them: matrices in panels, vectors in f32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../executor.h"
#include "../memory.h"
#include "../weights.h"
#include "kernels.h"
#include "team.h"

namespace glmlite {

// A matrix in panels.
struct Packed {
  Format format;
  int64_t n, k;
  const uint8_t* panels;
  int64_t panel_count() const { return (n + kLanes - 1) / kLanes; }
};

class PackedWeights {
 public:
  explicit PackedWeights(const Program& program);

  size_t bytes() const { return plan_.bytes(); }
  // Reads the tensors that the program was made with, and packs them. Throws FileError, OutOfMemory, Cancelled.
  void load(const Program& program, Team& team, const LoadProgress& progress);

  // By index into Program::weights.
  const Packed& matrix(int weight) const { return matrices_[weight]; }
  const float* vector(int weight) const { return weight < 0 ? nullptr : vectors_[weight]; }
  Packed expert(int weight, int64_t index) const {
    Packed p = matrices_[weight];
    p.panels += static_cast<size_t>(index) * plan_.at(weight).stride;
    return p;
  }

 private:
  const WeightPlan plan_;
  Memory memory_;
  std::vector<Packed> matrices_;  // of experts, the first
  std::vector<const float*> vectors_;
};

}  // namespace glmlite
