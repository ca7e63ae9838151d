#include "buffers.h"

#include <algorithm>

namespace glmlite {

std::vector<Place> places_of(const std::vector<ValueInfo>& values) {
  std::vector<Place> places;
  for (size_t id = 0; id < values.size(); ++id) {
    const ValueInfo& v = values[id];
    const Room room = v.selected ? Room::kSelected : Room::kTokens;
    const int last_use = std::max(v.last_use, static_cast<int>(id));
    places.push_back({v.width, room, room, last_use, last_use, v.quantized});
  }
  return places;
}

BufferPlan plan_buffers(const std::vector<Place>& places, size_t (*row_bytes)(int64_t width),
                        size_t (*quantized_bytes)(int64_t width)) {
  BufferPlan plan;
  std::vector<Buffer>& buffers = plan.buffers;
  struct Lying {
    int last_use = -1, until = -1;
    size_t row_bytes = 0;
  };
  std::vector<Lying> lying;  // in each buffer, last
  const auto take = [&](int id, size_t bytes, Room room) {
    const auto fits = [&](size_t b) {
      const Lying& l = lying[b];
      return buffers[b].room == room && l.last_use < id && (l.until < id || l.row_bytes == bytes);
    };
    // That which needs to grow least.
    const auto cost = [&](size_t b) {
      const size_t has = buffers[b].row_bytes;
      return has >= bytes ? has - bytes : (bytes - has) * 4;
    };
    size_t best = buffers.size();
    for (size_t b = 0; b < buffers.size(); ++b)
      if (fits(b) && (best == buffers.size() || cost(b) < cost(best))) best = b;
    if (best == buffers.size()) {
      buffers.push_back({0, room});
      lying.emplace_back();
    }
    buffers[best].row_bytes = std::max(buffers[best].row_bytes, bytes);
    lying[best] = {places[id].last_use, std::max(lying[best].until, places[id].until), bytes};
    return static_cast<int>(best);
  };
  for (int id = 0; id < static_cast<int>(places.size()); ++id) {
    const Place& place = places[id];
    BuffersOf of;
    of.plain = take(id, row_bytes(place.width), place.room);
    if (place.is_quantized) of.quantized = take(id, quantized_bytes(place.width), place.quantized);
    plan.values.push_back(of);
  }
  return plan;
}

}  // namespace glmlite
