// Integer primitives of AVX-VNNI: vpdpbusd on ymm. See linear.inc.
#pragma once
#include "codes_avx2.h"

namespace glmlite {
namespace {

constexpr int kTilePanels = 1, kTileTokens = 6, kDirectTokens = 4, kFloatSums = 4;
constexpr int kPeakDots = 6, kPeakQuads = 1;
constexpr bool kTileSumsInRegisters = false;
constexpr int kCodeOffset = 128;

GLMLITE_INLINE Codes offset_signed(Codes c) {
  const __m256i top = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(c.lo, top), _mm256_xor_si256(c.hi, top)};
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
    sum.lo = _mm256_dpbusd_avx_epi32(sum.lo, c.lo, q.v);
    sum.hi = _mm256_dpbusd_avx_epi32(sum.hi, c.hi, q.v);
  }
  GLMLITE_INLINE void add_values(Codes c, Quad q) {
    sum.lo = _mm256_dpbusd_avx_epi32(sum.lo, q.v, c.lo);
    sum.hi = _mm256_dpbusd_avx_epi32(sum.hi, q.v, c.hi);
  }
  GLMLITE_INLINE void settle() {}
  GLMLITE_INLINE F32x16 bits() const { return as_f32(sum); }
  GLMLITE_INLINE F32x16 total() const { return to_f32(sum); }
};

}  // namespace
}  // namespace glmlite
