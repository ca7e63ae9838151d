// Where the values of a step lie: in buffers, which values share one after the other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "program.h"

namespace glmlite {

// Which rows of a step a buffer has room for.
enum class Room {
  kTokens,
  kSelected,  // one for each row of logits
  kPart       // those of a part of the step, which is done in parts
};

// As wide as its widest value.
struct Buffer {
  size_t row_bytes = 0;
  Room room = Room::kTokens;
};

// The buffers of a value, as indices.
struct BuffersOf {
  int plain = -1;
  int quantized = -1;  // for the form that linears with quantized weights read, if any does
};

struct BufferPlan {
  std::vector<BuffersOf> values;
  std::vector<Buffer> buffers;
};

// What a value takes.
struct Place {
  int64_t width;
  Room room, quantized;  // quantized: of that form
  // Index of the last op that reads a row of it, and of the last before another value may lie there whose rows are not
  // as wide: where ops are done for some rows and then for others, that is later.
  int last_use, until;
  bool is_quantized;
};

// No two living values share a buffer. row_bytes, quantized_bytes: what a row of so many columns takes.
BufferPlan plan_buffers(const std::vector<Place>& places, size_t (*row_bytes)(int64_t width),
                        size_t (*quantized_bytes)(int64_t width));
// Of values in steps that are done at once.
std::vector<Place> places_of(const std::vector<ValueInfo>& values);

}  // namespace glmlite
