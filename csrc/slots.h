// Where the values of a step lie: in slots, which values share one after the other.
#pragma once
#include <cstddef>
#include <vector>

#include "program.h"

namespace glmlite {

// As wide as its widest value.
struct Slot {
  size_t row_bytes = 0;
  bool selected = false;  // its values have a row per row of logits, not per token
};

struct Place {
  int slot = -1;
  int quantized_slot = -1;  // of the form that linears with quantized weights read, if any does
};

struct SlotPlan {
  std::vector<Place> places;  // by value
  std::vector<Slot> slots;
};

// No two living values share a slot. row_bytes, quantized_bytes: what a row of so many columns takes.
SlotPlan plan_slots(const std::vector<ValueInfo>& values, size_t (*row_bytes)(int64_t width),
                    size_t (*quantized_bytes)(int64_t width));

}  // namespace glmlite
