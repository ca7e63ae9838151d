// Where a device keeps a program's weights, and in which order they are read: decided once, for all devices.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "program.h"

namespace glmlite {

class WeightPlan {
 public:
  // packed: bytes of a matrix as the device packs it. alignment: of all weights.
  WeightPlan(const Program& program, size_t alignment, size_t (*packed)(Format, int64_t n, int64_t k));

  struct Place {
    size_t offset = 0;
    size_t stride = 0;  // from one expert's matrix to the next
  };
  const Place& at(int weight) const { return places_[weight]; }
  size_t bytes() const { return bytes_; }
  // Those to load, as they lie in the file: of all but the prefix.
  const std::vector<int>& order() const { return order_; }
  // Of which tensors lie where: the same number for the same layout. For a program whose tensors are there.
  uint64_t fingerprint(const Program& program) const;

 private:
  std::vector<Place> places_;  // by weight
  std::vector<int> order_;
  size_t bytes_ = 0;
};

}  // namespace glmlite
