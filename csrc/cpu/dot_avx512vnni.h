// Integer primitives of AVX-512-VNNI: 16 rows x 4 codes in a zmm, vpdpbusd. See linear.inc.
#pragma once
// clang-format off: simd_avx512.h comes first, because it silences warnings about the compiler's own header
#include "simd_avx512.h"
#include "dot_x86.h"
// clang-format on

namespace glmlite {
namespace {

constexpr int kTilePanels = 2, kDirectTokens = 8, kFloatSums = 16;
constexpr int kPeakDots = 24, kPeakQuads = 1;
constexpr bool kTileSumsInRegisters = true;
constexpr int kCodeOffset = 128;

struct Codes {
  __m512i v;
};
struct Ints {
  __m512i v;
};
struct Quad {
  __m512i v;
};

GLMLITE_INLINE Codes load_codes(const uint8_t* p) { return {_mm512_load_si512(p)}; }
GLMLITE_INLINE void store_codes(uint8_t* p, Codes c) { _mm512_store_si512(p, c.v); }
template <int kShift>
GLMLITE_INLINE Codes field(Codes c, int mask) {
  if (kShift > 0) c.v = _mm512_srli_epi16(c.v, kShift > 0 ? kShift : 0);
  if (kShift < 0) c.v = _mm512_slli_epi16(c.v, kShift < 0 ? -kShift : 0);
  return {_mm512_and_si512(c.v, _mm512_set1_epi8(static_cast<char>(mask)))};
}
GLMLITE_INLINE Codes join(Codes a, Codes b) { return {_mm512_or_si512(a.v, b.v)}; }
GLMLITE_INLINE Codes lookup(Codes c, const uint8_t* table) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), c.v)};
}
GLMLITE_INLINE Codes offset_signed(Codes c) { return {_mm512_xor_si512(c.v, _mm512_set1_epi8(-128))}; }
GLMLITE_INLINE void transpose(Codes (&c)[4]) {
  const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m512i lanes[4], pairs[4];  // then 128-bit lanes as a matrix of 4 x 4
  for (int i = 0; i < 4; ++i) lanes[i] = _mm512_shuffle_epi8(c[i].v, within);
  for (int i = 0; i < 2; ++i) {
    pairs[2 * i] = _mm512_shuffle_i32x4(lanes[2 * i], lanes[2 * i + 1], 0x44);
    pairs[2 * i + 1] = _mm512_shuffle_i32x4(lanes[2 * i], lanes[2 * i + 1], 0xee);
  }
  for (int i = 0; i < 2; ++i) {
    c[2 * i].v = _mm512_shuffle_i32x4(pairs[i], pairs[2 + i], 0x88);
    c[2 * i + 1].v = _mm512_shuffle_i32x4(pairs[i], pairs[2 + i], 0xdd);
  }
}

GLMLITE_INLINE Codes fill_zero_rows(Codes c, F32x16 w, int code) {
  const __mmask16 zero = _mm512_cmp_ps_mask(w.v, _mm512_setzero_ps(), _CMP_EQ_OQ);
  return {_mm512_mask_blend_epi32(zero, c.v, _mm512_set1_epi8(static_cast<char>(code)))};
}
GLMLITE_INLINE F32x16 add_bits(F32x16 a, F32x16 b) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
GLMLITE_INLINE F32x16 subtract_bits(F32x16 a, F32x16 b) {
  return {_mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}

GLMLITE_INLINE F32x16 to_f32(Bytes16 b) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b.v))}; }
GLMLITE_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16))};
}

GLMLITE_INLINE Ints set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
GLMLITE_INLINE Quad load_quad(const int8_t* q) {
  int32_t bits;
  memcpy(&bits, q, 4);
  return {_mm512_set1_epi32(bits)};
}

// Dot does the same for all of these numbers of bits.
template <int kBits>
constexpr int kTileBits = 8;

template <int kBits>
struct Dot {
  Ints sum;
  GLMLITE_INLINE void start(int32_t first) { sum = set1(first); }
  template <int kStep>
  GLMLITE_INLINE void add(Codes c, Quad q) {
    sum.v = _mm512_dpbusd_epi32(sum.v, c.v, q.v);
    GLMLITE_PIN_ZMM(sum.v);
  }
  GLMLITE_INLINE void add_values(Codes c, Quad q) {
    sum.v = _mm512_dpbusd_epi32(sum.v, q.v, c.v);
    GLMLITE_PIN_ZMM(sum.v);
  }
  GLMLITE_INLINE void settle() {}
  GLMLITE_INLINE F32x16 bits() const { return {_mm512_castsi512_ps(sum.v)}; }
  GLMLITE_INLINE F32x16 total() const { return {_mm512_cvtepi32_ps(sum.v)}; }
};

}  // namespace
}  // namespace glmlite
