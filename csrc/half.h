// f16 and bf16 to f32, exactly, in integer arithmetic.
#pragma once
#include <cstdint>
#include <cstring>

namespace glmlite {

// static: each file, whatever flags it is compiled with, keeps its own copy.
static inline float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Without branches, so that compilers vectorise a row of them: every case is computed, and masks choose.
static inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  const uint32_t subnormal = float_to_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t is_small = 0u - (magnitude < 0x0400), is_other = 0u - (magnitude >= 0x7c00);
  const uint32_t is_nan = 0u - (magnitude > 0x7c00);  // becomes quiet, as the conversion instructions make it
  return bits_to_float(sign | (subnormal & is_small) | (normal & ~is_small) | (0x7f800000 & is_other) |
                       (0x400000 & is_nan));
}

static inline float bfloat_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

}  // namespace glmlite
