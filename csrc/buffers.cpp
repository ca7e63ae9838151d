#include "buffers.h"

#include <algorithm>

namespace glmlite {

BufferPlan plan_buffers(const std::vector<ValueInfo>& values, size_t (*row_bytes)(int64_t width),
                        size_t (*quantized_bytes)(int64_t width)) {
  BufferPlan plan;
  std::vector<Buffer>& buffers = plan.buffers;
  std::vector<int> free;
  std::vector<std::pair<int, int>> busy;  // last use, buffer
  const auto take = [&](size_t bytes, bool selected, int last_use) {
    // The free one of this kind that needs to grow least.
    auto best = free.end();
    const auto cost = [&](int s) {
      return buffers[s].row_bytes >= bytes ? buffers[s].row_bytes - bytes : (bytes - buffers[s].row_bytes) * 4;
    };
    for (auto it = free.begin(); it != free.end(); ++it)
      if (buffers[*it].selected == selected && (best == free.end() || cost(*it) < cost(*best))) best = it;
    int buffer;
    if (best == free.end()) {
      buffer = static_cast<int>(buffers.size());
      buffers.push_back({0, selected});
    } else {
      buffer = *best;
      free.erase(best);
    }
    buffers[buffer].row_bytes = std::max(buffers[buffer].row_bytes, bytes);
    busy.emplace_back(last_use, buffer);
    return buffer;
  };
  for (size_t id = 0; id < values.size(); ++id) {
    const ValueInfo& v = values[id];
    for (size_t i = 0; i < busy.size();) {  // what the ops before this one read for the last time
      if (busy[i].first < static_cast<int>(id)) {
        free.push_back(busy[i].second);
        busy.erase(busy.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
    const int last_use = std::max(v.last_use, static_cast<int>(id));
    BuffersOf of;
    of.plain = take(row_bytes(v.width), v.selected, last_use);
    if (v.quantized) of.quantized = take(quantized_bytes(v.width), v.selected, last_use);
    plan.values.push_back(of);
  }
  return plan;
}

}  // namespace glmlite
