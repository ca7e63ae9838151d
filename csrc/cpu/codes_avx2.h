// 16 rows x 4 codes in two ymm, rows 0..7 and 8..15: what the AVX2 and AVX-VNNI sets share. See linear.inc.
#pragma once
#include "dot_x86.h"
#include "simd_avx2.h"

namespace glmlite {
namespace {

struct Codes {
  __m256i lo, hi;
};
struct Ints {
  __m256i lo, hi;
};
struct Quad {
  __m256i v;
};

GLMLITE_INLINE Codes load_codes(const uint8_t* p) {
  return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
GLMLITE_INLINE void store_codes(uint8_t* p, Codes c) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), c.lo);
  _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), c.hi);
}
template <int kShift>
GLMLITE_INLINE __m256i field(__m256i v, int mask) {
  if (kShift > 0) v = _mm256_srli_epi16(v, kShift > 0 ? kShift : 0);
  if (kShift < 0) v = _mm256_slli_epi16(v, kShift < 0 ? -kShift : 0);
  return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(mask)));
}
template <int kShift>
GLMLITE_INLINE Codes field(Codes c, int mask) {
  return {field<kShift>(c.lo, mask), field<kShift>(c.hi, mask)};
}
GLMLITE_INLINE Codes join(Codes a, Codes b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
GLMLITE_INLINE Codes lookup(Codes c, const uint8_t* table) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, c.lo), _mm256_shuffle_epi8(t, c.hi)};
}
GLMLITE_INLINE void transpose(Codes (&c)[4]) {
  const __m256i within =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  Codes lanes[4];  // then 128-bit lanes as a matrix of 4 x 4
  for (int i = 0; i < 4; ++i) lanes[i] = {_mm256_shuffle_epi8(c[i].lo, within), _mm256_shuffle_epi8(c[i].hi, within)};
  c[0] = {_mm256_permute2x128_si256(lanes[0].lo, lanes[1].lo, 0x20),
          _mm256_permute2x128_si256(lanes[2].lo, lanes[3].lo, 0x20)};
  c[1] = {_mm256_permute2x128_si256(lanes[0].lo, lanes[1].lo, 0x31),
          _mm256_permute2x128_si256(lanes[2].lo, lanes[3].lo, 0x31)};
  c[2] = {_mm256_permute2x128_si256(lanes[0].hi, lanes[1].hi, 0x20),
          _mm256_permute2x128_si256(lanes[2].hi, lanes[3].hi, 0x20)};
  c[3] = {_mm256_permute2x128_si256(lanes[0].hi, lanes[1].hi, 0x31),
          _mm256_permute2x128_si256(lanes[2].hi, lanes[3].hi, 0x31)};
}

GLMLITE_INLINE F32x16 to_f32(Bytes16 b) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b.v)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b.v, 8)))};
}
GLMLITE_INLINE F32x16 as_f32(Ints a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
GLMLITE_INLINE F32x16 to_f32(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
GLMLITE_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m128i* v = reinterpret_cast<const __m128i*>(p);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(v)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(v + 1)), 16))};
}

GLMLITE_INLINE Ints set1(int32_t x) {
  const __m256i v = _mm256_set1_epi32(x);
  return {v, v};
}
GLMLITE_INLINE Quad load_quad(const int8_t* q) {
  int32_t bits;
  memcpy(&bits, q, 4);
  return {_mm256_set1_epi32(bits)};
}

}  // namespace
}  // namespace glmlite
