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

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity; a NaN becomes quiet, as the conversion instructions make it
    return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0));
  }
  if (magnitude >= 0x0400) return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
  const float x = static_cast<float>(magnitude) * 0x1p-24f;  // subnormal
  return sign ? -x : x;
}

static inline float bfloat_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

}  // namespace glmlite
