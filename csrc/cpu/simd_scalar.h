// Stand-in: 16 f32 lanes, plain C++.
#pragma once
#include <cmath>
#include <cstdint>

#include "../half.h"
#include "inline.h"
namespace glmlite {
namespace {
struct F32x16 {
  float v[16];
};
#define GLMLITE_EACH(expr)                      \
  F32x16 r;                                     \
  for (int i = 0; i < 16; ++i) r.v[i] = (expr); \
  return r
GLMLITE_INLINE F32x16 load(const float* p) { GLMLITE_EACH(p[i]); }
GLMLITE_INLINE F32x16 load_f16(const uint16_t* p) { GLMLITE_EACH(half_to_float(p[i])); }
GLMLITE_INLINE F32x16 set1(float x) { GLMLITE_EACH(x); }
GLMLITE_INLINE F32x16 mul(F32x16 a, F32x16 b) { GLMLITE_EACH(a.v[i] * b.v[i]); }
GLMLITE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { GLMLITE_EACH(std::fma(a.v[i], b.v[i], c.v[i])); }
GLMLITE_INLINE void store(float* p, F32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}
#undef GLMLITE_EACH
}  // namespace
}  // namespace glmlite
