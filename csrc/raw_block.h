// One block of a quantized format with its bit fields taken apart: what dequantizing and packing have in common.
#pragma once
#include <cstdint>

#include "blocks.h"

namespace glmlite {

// How a format's values follow from its fields. A group of 16 or 32 values shares a scale and a minimum:
//   value = w * (c - zero) + m,  c = table ? kIQ4Values[code] : code (signed where low_bits is 8)
//   w = d and m = min, or, where is_super, w = d * (scale - scale_zero) and m = -(min * minimum), in f32.
// Formats without has_min have no m.
struct FormatTraits {
  bool is_super;     // blocks of 256 with scales of their own groups; otherwise blocks of 32
  int low_bits;      // of a code: 8, 4 or 2; 0 for float formats
  int high_bits;     // stored apart: 0, 1 or 2
  int zero;          // subtracted from a code
  int groups;        // of scales per 32 values: 1 or 2
  bool has_min;      //
  bool has_table;    // codes are indices of kIQ4Values
  int scale_zero;    // subtracted from a scale
  int header_bytes;  // of the scales of 16 rows in a panel: per 256 values if is_super, else per 32
};

constexpr FormatTraits kFormatTraits[kFormatCount] = {
    {false, 0, 0, 0, 0, false, false, 0, 0},    // F32
    {false, 0, 0, 0, 0, false, false, 0, 0},    // F16
    {false, 0, 0, 0, 0, false, false, 0, 0},    // BF16
    {false, 8, 0, 0, 1, false, false, 0, 32},   // Q8_0
    {false, 4, 0, 8, 1, false, false, 0, 32},   // Q4_0
    {false, 4, 0, 0, 1, true, false, 0, 64},    // Q4_1
    {false, 4, 1, 16, 1, false, false, 0, 32},  // Q5_0
    {false, 4, 1, 0, 1, true, false, 0, 64},    // Q5_1
    {true, 2, 0, 0, 2, true, false, 0, 320},    // Q2_K
    {true, 2, 1, 4, 2, false, false, 32, 256},  // Q3_K
    {true, 4, 0, 0, 1, true, false, 0, 256},    // Q4_K
    {true, 4, 1, 0, 1, true, false, 0, 256},    // Q5_K
    {true, 4, 2, 32, 2, false, false, 0, 320},  // Q6_K
    {false, 4, 0, 0, 1, false, true, 0, 32},    // IQ4_NL
    {true, 4, 0, 0, 1, false, true, 32, 128},   // IQ4_XS
};

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
