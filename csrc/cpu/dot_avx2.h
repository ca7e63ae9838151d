// Integer primitives of AVX2: maddubs (u8 x s8, pairs summed in int16), then madd to int32. See linear.inc.
#pragma once
#include "codes_avx2.h"

namespace glmlite {
namespace {

constexpr int kTilePanels = 1, kTileTokens = 4, kDirectTokens = 4, kFloatSums = 4;
constexpr int kPeakDots = 4, kPeakQuads = 4;
constexpr bool kTileSumsInRegisters = false;
constexpr int kCodeOffset = 0;

GLMLITE_INLINE Codes offset_signed(Codes c) { return c; }

// Dot does the same for all of these numbers of bits.
template <int kBits>
constexpr int kTileBits = kBits < 4 ? 4 : kBits;

// Codes below 2^kBits: a pair is at most 2 * 127 * (2^kBits - 1), so kRun of them fit int16 (8 * 3810 = 30480 for 4
// bits, 4 * 7874 for 5, 2 * 16002 for 6) and go to int32 together.
// The first summand waits in memory: registers are few.
template <int kBits>
struct Dot {
  static constexpr int kRun = kBits <= 4 ? 8 : kBits == 5 ? 4 : 2;
  int32_t first;
  bool has_sum;
  Ints sum;
  __m256i lo, hi;
  GLMLITE_INLINE void start(int32_t value) {
    first = value;
    has_sum = false;
  }
  template <int kStep>
  GLMLITE_INLINE void add(Codes c, Quad q) {
    const __m256i l = _mm256_maddubs_epi16(c.lo, q.v), h = _mm256_maddubs_epi16(c.hi, q.v);
    if (kStep % kRun == 0) {
      if (kStep > 0) settle();
      lo = l;
      hi = h;
    } else {
      lo = _mm256_add_epi16(lo, l);
      hi = _mm256_add_epi16(hi, h);
    }
    GLMLITE_PIN_XMM(lo);
    GLMLITE_PIN_XMM(hi);
  }
  GLMLITE_INLINE void settle() {
    const Ints before = has_sum ? sum : set1(first);
    sum.lo = _mm256_add_epi32(before.lo, _mm256_madd_epi16(lo, _mm256_set1_epi16(1)));
    sum.hi = _mm256_add_epi32(before.hi, _mm256_madd_epi16(hi, _mm256_set1_epi16(1)));
    has_sum = true;
  }
  GLMLITE_INLINE F32x16 bits() {
    settle();
    return as_f32(sum);
  }
  GLMLITE_INLINE F32x16 total() {
    settle();
    return to_f32(sum);
  }
};

// Signed codes: |c| * (q with the sign of c). 2 * 128 * 127 = 32512 fits int16, two of them do not.
template <>
struct Dot<8> {
  Ints sum;
  GLMLITE_INLINE void start(int32_t first) { sum = set1(first); }
  GLMLITE_INLINE static __m256i dot(__m256i c, __m256i q) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(q, c)), _mm256_set1_epi16(1));
  }
  template <int kStep>
  GLMLITE_INLINE void add(Codes c, Quad q) {
    sum.lo = _mm256_add_epi32(sum.lo, dot(c.lo, q.v));
    sum.hi = _mm256_add_epi32(sum.hi, dot(c.hi, q.v));
    GLMLITE_PIN_XMM(sum.lo);
    GLMLITE_PIN_XMM(sum.hi);
  }
  GLMLITE_INLINE static __m256i dot_values(__m256i c, __m256i q) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(q, c), _mm256_set1_epi16(1));
  }
  GLMLITE_INLINE void add_values(Codes c, Quad q) {
    sum.lo = _mm256_add_epi32(sum.lo, dot_values(c.lo, q.v));
    sum.hi = _mm256_add_epi32(sum.hi, dot_values(c.hi, q.v));
    GLMLITE_PIN_XMM(sum.lo);
    GLMLITE_PIN_XMM(sum.hi);
  }
  GLMLITE_INLINE void settle() {}
  GLMLITE_INLINE F32x16 bits() { return as_f32(sum); }
  GLMLITE_INLINE F32x16 total() { return to_f32(sum); }
};

}  // namespace
}  // namespace glmlite
