// F32x16 in one zmm register: AVX-512 F, BW, VL, DQ. What each function does is said in simd_scalar.h.
#pragma once
#include <cstdint>

#include "intrinsics_x86.h"

namespace glmlite {
namespace {

struct F32x16 {
  __m512 v;
};
using Mask16 = __mmask16;

constexpr int kAccumulators = 24;

inline float fma(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

inline Mask16 first_lanes(int n) { return static_cast<Mask16>((1u << n) - 1); }

inline F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32x16 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, F32x16 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32x16 load_f16(const uint16_t* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p))};
}
inline __m256i to_f16(F32x16 x) { return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store_f16(uint16_t* p, F32x16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(x)); }
inline void store_f16(uint16_t* p, F32x16 x, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), to_f16(x)); }
inline void store_i8(int8_t* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}

inline void store_halves(int8_t* high, int8_t* low, const F32x16 (&x)[4]) {
  __m512i n[4];
  for (int i = 0; i < 4; ++i) n[i] = _mm512_cvtps_epi32(x[i].v);
  const __m512i a = _mm512_packs_epi32(n[0], n[1]), b = _mm512_packs_epi32(n[2], n[3]), seven = _mm512_set1_epi16(127);
  // The packs work within 128-bit lanes; the permutation puts the groups of four back in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i h = _mm512_packs_epi16(_mm512_srli_epi16(a, 7), _mm512_srli_epi16(b, 7));
  const __m512i l = _mm512_packs_epi16(_mm512_and_si512(a, seven), _mm512_and_si512(b, seven));
  _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, h));
  _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, l));
}

inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 abs(F32x16 x) { return {_mm512_abs_ps(x.v)}; }
inline F32x16 round(F32x16 x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32x16 scale2(F32x16 x, F32x16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }

inline Mask16 less(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline Mask16 not_less(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ); }
inline Mask16 is_nan(F32x16 x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q); }
inline bool any(Mask16 m) { return m != 0; }
inline F32x16 select(Mask16 m, F32x16 a, F32x16 b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
inline F32x16 keep(Mask16 m, F32x16 x) { return {_mm512_maskz_mov_ps(m, x.v)}; }
template <int kApart>
inline F32x16 swap_lanes(F32x16 x) {
  switch (kApart) {
    case 1:
      return {_mm512_permute_ps(x.v, 0xb1)};
    case 2:
      return {_mm512_permute_ps(x.v, 0x4e)};
    case 4:
      return {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)};
    default:
      return {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)};
  }
}

inline float sum_lanes(F32x16 x) {
  __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
// Each level adds the halves of what is left of two vectors, side by side: of quarters[k] the 128-bit lane j is of the
// vector 4 j + k.
inline F32x16 sum_rows(const float* rows) {
  __m512 quarters[4];
  for (int k = 0; k < 4; ++k) {
    __m512 halves[2];
    for (int i = 0; i < 2; ++i) {
      const __m512 a = _mm512_loadu_ps(rows + 16 * (8 * i + k)), b = _mm512_loadu_ps(rows + 16 * (8 * i + 4 + k));
      halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    quarters[k] = _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                                _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
  }
  __m512 pairs[2];
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(quarters[2 * i]), b = _mm512_castps_pd(quarters[2 * i + 1]);
    pairs[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd))};
}
inline float max_lanes(F32x16 x) {
  __m256 y = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

}  // namespace
}  // namespace glmlite
