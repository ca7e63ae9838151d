// Stand-in: 16 f32 lanes in four q registers.
#pragma once
#include <arm_neon.h>

#include <cstdint>

#include "inline.h"
namespace glmlite {
namespace {
struct F32x16 {
  float32x4_t v[4];
};
#define GLMLITE_EACH(expr)                     \
  F32x16 r;                                    \
  for (int i = 0; i < 4; ++i) r.v[i] = (expr); \
  return r
GLMLITE_INLINE F32x16 load(const float* p) { GLMLITE_EACH(vld1q_f32(p + 4 * i)); }
GLMLITE_INLINE F32x16 load_f16(const uint16_t* p) {
  GLMLITE_EACH(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
GLMLITE_INLINE F32x16 set1(float x) { GLMLITE_EACH(vdupq_n_f32(x)); }
GLMLITE_INLINE F32x16 mul(F32x16 a, F32x16 b) { GLMLITE_EACH(vmulq_f32(a.v[i], b.v[i])); }
GLMLITE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { GLMLITE_EACH(vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
GLMLITE_INLINE void store(float* p, F32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
#undef GLMLITE_EACH
}  // namespace
}  // namespace glmlite
