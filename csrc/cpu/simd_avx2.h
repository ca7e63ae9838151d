// F32x16 in two ymm registers: AVX2, FMA, F16C. What each function does is said in simd_scalar.h.
#pragma once

#include <cstdint>

#include "intrinsics_x86.h"

namespace glmlite {
namespace {

struct F32x16 {
  __m256 lo, hi;
};
struct Mask16 {
  __m256 lo, hi;  // all bits of a lane, or none
};

constexpr int kAccumulators = 6;

inline float fma(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

inline Mask16 first_lanes(int n) {
  __m256i count = _mm256_set1_epi32(n), lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lane)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_add_epi32(lane, _mm256_set1_epi32(8))))};
}

inline F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F32x16 load(const float* p, int n) {
  if (n == 16) return load(p);
  Mask16 m = first_lanes(n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
}
inline void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline void store(float* p, F32x16 x, int n) {
  if (n == 16) return store(p, x);
  Mask16 m = first_lanes(n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), x.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), x.hi);
}
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline F32x16 load_f16(const uint16_t* p, int n) {
  if (n == 16) return load_f16(p);
  uint16_t lanes[16] = {};
  for (int l = 0; l < n; ++l) lanes[l] = p[l];
  return load_f16(lanes);
}
inline void store_f16(uint16_t* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_f16(uint16_t* p, F32x16 x, int n) {
  if (n == 16) return store_f16(p, x);
  uint16_t lanes[16];
  store_f16(lanes, x);
  for (int l = 0; l < n; ++l) p[l] = lanes[l];
}
inline void store_i8(int8_t* p, F32x16 x) {
  // The packs work within 128-bit lanes; the permutation puts the fours back in order.
  __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

inline void store_halves(int8_t* high, int8_t* low, const F32x16 (&x)[4]) {
  // The packs work within 128-bit lanes; the permutation puts the groups of four back in order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), seven = _mm256_set1_epi16(127);
  for (int i = 0; i < 4; i += 2) {
    const __m256i a = _mm256_packs_epi32(_mm256_cvtps_epi32(x[i].lo), _mm256_cvtps_epi32(x[i].hi));
    const __m256i b = _mm256_packs_epi32(_mm256_cvtps_epi32(x[i + 1].lo), _mm256_cvtps_epi32(x[i + 1].hi));
    const __m256i h = _mm256_packs_epi16(_mm256_srli_epi16(a, 7), _mm256_srli_epi16(b, 7));
    const __m256i l = _mm256_packs_epi16(_mm256_and_si256(a, seven), _mm256_and_si256(b, seven));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + 16 * i), _mm256_permutevar8x32_epi32(h, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + 16 * i), _mm256_permutevar8x32_epi32(l, order));
  }
}

inline F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32x16 abs(F32x16 x) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.lo), _mm256_andnot_ps(sign, x.hi)};
}
inline F32x16 round(F32x16 x) {
  return {_mm256_round_ps(x.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 scale2(__m256 x, __m256 n) {
  __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
  __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}
inline F32x16 scale2(F32x16 x, F32x16 n) { return {scale2(x.lo, n.lo), scale2(x.hi, n.hi)}; }

inline Mask16 less(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
inline Mask16 not_less(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ)};
}
inline Mask16 is_nan(F32x16 x) {
  return {_mm256_cmp_ps(x.lo, x.lo, _CMP_UNORD_Q), _mm256_cmp_ps(x.hi, x.hi, _CMP_UNORD_Q)};
}
inline bool any(Mask16 m) { return _mm256_movemask_ps(_mm256_or_ps(m.lo, m.hi)) != 0; }
inline F32x16 select(Mask16 m, F32x16 a, F32x16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}
inline F32x16 keep(Mask16 m, F32x16 x) { return {_mm256_and_ps(m.lo, x.lo), _mm256_and_ps(m.hi, x.hi)}; }
template <int kApart>
inline F32x16 swap_lanes(F32x16 x) {
  switch (kApart) {
    case 1:
      return {_mm256_permute_ps(x.lo, 0xb1), _mm256_permute_ps(x.hi, 0xb1)};
    case 2:
      return {_mm256_permute_ps(x.lo, 0x4e), _mm256_permute_ps(x.hi, 0x4e)};
    case 4:
      return {_mm256_permute2f128_ps(x.lo, x.lo, 1), _mm256_permute2f128_ps(x.hi, x.hi, 1)};
    default:
      return {x.hi, x.lo};
  }
}

inline float sum_lanes(F32x16 x) {
  __m256 y = _mm256_add_ps(x.lo, x.hi);
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
// Each level adds the halves of what is left of two vectors, side by side: of quarters[k] the 128-bit lane j is of the
// vector 4 j + k.
inline __m256 sum_eight_rows(const float* rows) {
  __m256 quarters[4];
  for (int k = 0; k < 4; ++k) {
    const F32x16 x = load(rows + 16 * k), y = load(rows + 16 * (4 + k));
    const __m256 a = _mm256_add_ps(x.lo, x.hi), b = _mm256_add_ps(y.lo, y.hi);
    quarters[k] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  __m256 pairs[2];
  for (int i = 0; i < 2; ++i) {
    const __m256d a = _mm256_castps_pd(quarters[2 * i]), b = _mm256_castps_pd(quarters[2 * i + 1]);
    pairs[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return _mm256_add_ps(_mm256_shuffle_ps(pairs[0], pairs[1], 0x88), _mm256_shuffle_ps(pairs[0], pairs[1], 0xdd));
}
inline F32x16 sum_rows(const float* rows) { return {sum_eight_rows(rows), sum_eight_rows(rows + 8 * 16)}; }
inline float max_lanes(F32x16 x) {
  __m256 y = _mm256_max_ps(x.lo, x.hi);
  __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

}  // namespace
}  // namespace glmlite
