// Stand-in: 16 f32 lanes in one zmm.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "inline.h"
namespace glmlite {
namespace {
struct F32x16 {
  __m512 v;
};
GLMLITE_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
GLMLITE_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p))};
}
GLMLITE_INLINE F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
GLMLITE_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
GLMLITE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
GLMLITE_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
}  // namespace
}  // namespace glmlite
