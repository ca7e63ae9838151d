// Where the values of a step lie: in buffers, which values share one after the other.
#pragma once
#include <cstddef>
#include <vector>

#include "program.h"

namespace glmlite {

// As wide as its widest value.
struct Buffer {
  size_t row_bytes = 0;
  bool selected = false;  // its values have a row per row of logits, not per token
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

// No two living values share a buffer. row_bytes, quantized_bytes: what a row of so many columns takes.
BufferPlan plan_buffers(const std::vector<ValueInfo>& values, size_t (*row_bytes)(int64_t width),
                        size_t (*quantized_bytes)(int64_t width));

}  // namespace glmlite
