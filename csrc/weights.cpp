#include "weights.h"

#include <algorithm>
#include <map>

namespace glmlite {

namespace {

constexpr size_t kExpertAlignment = 4096;  // so that an expert is whole pages of memory

size_t align(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

WeightPlan::WeightPlan(const Program& program, size_t alignment, size_t (*packed)(Format, int64_t n, int64_t k))
    : places_(program.weights.size()) {
  const auto& weights = program.weights;
  for (size_t i = 0; i < weights.size(); ++i)
    if (weights[i].role != Role::kPrefix) order_.push_back(static_cast<int>(i));
  std::sort(order_.begin(), order_.end(),
            [&](int a, int b) { return lies_before(*weights[a].tensor, *weights[b].tensor); });
  std::map<int, std::vector<int>> groups;
  for (const int i : order_) groups[weights[i].group >= 0 ? weights[i].group : -1 - i].push_back(i);
  for (const int first : order_) {
    const Weight& w = weights[first];
    const auto& group = groups[w.group >= 0 ? w.group : -1 - first];
    if (group[0] != first) continue;  // placed with the first of its group
    const bool experts = w.role == Role::kExperts;
    if (experts) bytes_ = align(bytes_, kExpertAlignment);
    const size_t begin = bytes_;
    size_t stride = 0;
    for (const int i : group) {
      places_[i].offset = begin + stride;
      stride += align(weights[i].role == Role::kVector ? static_cast<size_t>(weights[i].n) * sizeof(float)
                                                       : packed(weights[i].format, weights[i].n, weights[i].k),
                      alignment);
    }
    if (experts) stride = align(stride, kExpertAlignment);
    for (const int i : group) places_[i].stride = stride;
    bytes_ += stride * static_cast<size_t>(w.count);
  }
}

}  // namespace glmlite
