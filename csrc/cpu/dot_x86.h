// Integer primitives that the x86 sets share: 16 bytes in an xmm, activations in ymm.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"
#include "intrinsics_x86.h"

namespace glmlite {
namespace {

struct Bytes16 {
  __m128i v;
};

GLMLITE_INLINE Bytes16 load_bytes(const uint8_t* p) { return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))}; }
// Bits that cross into the neighbour byte must not be wanted: a mask follows.
GLMLITE_INLINE Bytes16 shift_right(Bytes16 b, int count) { return {_mm_srl_epi16(b.v, _mm_cvtsi32_si128(count))}; }
template <int kShift>
GLMLITE_INLINE Bytes16 field(Bytes16 b, int mask) {
  if (kShift > 0) b.v = _mm_srli_epi16(b.v, kShift > 0 ? kShift : 0);
  if (kShift < 0) b.v = _mm_slli_epi16(b.v, kShift < 0 ? -kShift : 0);
  return {_mm_and_si128(b.v, _mm_set1_epi8(static_cast<char>(mask)))};
}
GLMLITE_INLINE Bytes16 join(Bytes16 a, Bytes16 b) { return {_mm_or_si128(a.v, b.v)}; }
GLMLITE_INLINE Bytes16 subtract(Bytes16 a, int n) { return {_mm_sub_epi8(a.v, _mm_set1_epi8(static_cast<char>(n)))}; }

// Reduces eight vectors of which both 128-bit halves hold four parts: element b of the result's half h is made of the
// parts of v[b]'s half h, for b below 4 in `low` and the others in `high`.
template <class Op>
GLMLITE_INLINE void reduce_halves(const __m256i* v, Op op, __m256i* low, __m256i* high) {
  __m256i pairs[4], fours[2];
  for (int i = 0; i < 4; ++i) {
    pairs[i] = op(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  }
  for (int i = 0; i < 2; ++i) {
    fours[i] = op(_mm256_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                  _mm256_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  }
  *low = fours[0];
  *high = fours[1];
}

GLMLITE_INLINE void max_magnitudes(const float* x, int64_t blocks, int32_t* largest) {
  __m256i m[8];
  for (int b = 0; b < 8; ++b) {
    m[b] = _mm256_setzero_si256();
    for (int i = 0; i < 32 && b < blocks; i += 8) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32 * b + i));
      m[b] = _mm256_max_epu32(m[b], _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
  }
  __m256i low, high;
  reduce_halves(m, [](__m256i a, __m256i b) { return _mm256_max_epu32(a, b); }, &low, &high);
  const __m256i all =
      _mm256_max_epu32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(largest), all);
}

GLMLITE_INLINE void round_blocks(const float* x, const float* factor, float half, int8_t* q, int64_t q_stride,
                                 int32_t* sums) {
  __m256i s[8];
  for (int b = 0; b < 8; ++b, x += 32, q += q_stride) {
    __m256i all = _mm256_setzero_si256();
    if (factor[b] != 0) {
      __m256i v[4];
      for (int i = 0; i < 4; ++i) {
        const __m256 r = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(factor[b]));
        const __m256 h = _mm256_or_ps(_mm256_and_ps(r, _mm256_set1_ps(-0.0f)), _mm256_set1_ps(half));
        v[i] = _mm256_cvttps_epi32(_mm256_add_ps(r, h));
      }
      // The packs work within 128-bit lanes; the permutation puts the groups of four back in order.
      all = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
      all = _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), all);
    s[b] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), all), _mm256_set1_epi16(1));
  }
  __m256i low, high;
  reduce_halves(s, [](__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }, &low, &high);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8), _mm256_permute2x128_si256(low, high, 0x31));
}

}  // namespace
}  // namespace glmlite
