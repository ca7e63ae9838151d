#include "slots.h"

#include <algorithm>

namespace glmlite {

SlotPlan plan_slots(const std::vector<ValueInfo>& values, size_t (*row_bytes)(int64_t width),
                    size_t (*quantized_bytes)(int64_t width)) {
  SlotPlan plan;
  std::vector<Slot>& slots = plan.slots;
  std::vector<int> free;
  std::vector<std::pair<int, int>> busy;  // last use, slot
  const auto take = [&](size_t bytes, bool selected, int last_use) {
    // The free one of this kind that needs to grow least.
    auto best = free.end();
    const auto cost = [&](int s) {
      return slots[s].row_bytes >= bytes ? slots[s].row_bytes - bytes : (bytes - slots[s].row_bytes) * 4;
    };
    for (auto it = free.begin(); it != free.end(); ++it)
      if (slots[*it].selected == selected && (best == free.end() || cost(*it) < cost(*best))) best = it;
    int slot;
    if (best == free.end()) {
      slot = static_cast<int>(slots.size());
      slots.push_back({0, selected});
    } else {
      slot = *best;
      free.erase(best);
    }
    slots[slot].row_bytes = std::max(slots[slot].row_bytes, bytes);
    busy.emplace_back(last_use, slot);
    return slot;
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
    Place place;
    place.slot = take(row_bytes(v.width), v.selected, last_use);
    if (v.quantized) place.quantized_slot = take(quantized_bytes(v.width), v.selected, last_use);
    plan.places.push_back(place);
  }
  return plan;
}

}  // namespace glmlite
