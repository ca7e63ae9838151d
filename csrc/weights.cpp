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

uint64_t WeightPlan::fingerprint(const Program& program) const {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  const auto add = [&](const void* data, size_t count) {
    for (size_t i = 0; i < count; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3;
  };
  const auto number = [&](uint64_t value) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> 8 * i);
    add(bytes, sizeof bytes);
  };
  for (const int i : order_) {
    const Weight& w = program.weights[i];
    add(w.tensor->name.c_str(), w.tensor->name.size() + 1);
    for (const int64_t of :
         {static_cast<int64_t>(w.role), static_cast<int64_t>(format_info(w.format).gguf_type), w.count, w.n, w.k})
      number(static_cast<uint64_t>(of));
    number(places_[i].offset);
    number(places_[i].stride);
  }
  return hash;
}

}  // namespace glmlite
