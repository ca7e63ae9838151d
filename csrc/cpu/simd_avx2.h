// Stand-in: 16 f32 lanes in two ymm.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "inline.h"
namespace glmlite {
namespace {
struct F32x16 {
  __m256 lo, hi;
};
GLMLITE_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
GLMLITE_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
GLMLITE_INLINE F32x16 set1(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
GLMLITE_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
GLMLITE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
GLMLITE_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
}  // namespace
}  // namespace glmlite
