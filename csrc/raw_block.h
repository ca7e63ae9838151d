// One block of a quantized format with its bit fields taken apart: what dequantizing and packing have in common.
#pragma once
#include <cstdint>

#include "blocks.h"

namespace glmlite {

constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct RawBlock {
  uint16_t d, min;      // f16; min: only if has_min
  uint8_t scale[16];    // is_super: one per group, as stored; int8 for Q6_K
  uint8_t minimum[16];  // is_super and has_min: one per group
  uint8_t code[256];    // in order of k; int8 for Q8_0
};

// From a block as the file stores it.
void read_block(Format, const uint8_t* block, RawBlock* raw);

// The block's values as f32.
void block_values(Format, const RawBlock& raw, float* y);

}  // namespace glmlite
