// Integer primitives that the x86 sets share: 16 bytes in an xmm, activations in ymm.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "inline.h"

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

GLMLITE_INLINE uint32_t max_magnitude(const float* x) {
  __m256i m = _mm256_setzero_si256();
  for (int i = 0; i < 32; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    m = _mm256_max_epu32(m, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  __m128i s = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  s = _mm_max_epu32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_max_epu32(s, _mm_shuffle_epi32(s, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(s));
}

GLMLITE_INLINE void round_block(const float* x, float factor, float half, int8_t* q, int32_t* sums) {
  __m256i v[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 r = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(factor));
    const __m256 h = _mm256_or_ps(_mm256_and_ps(r, _mm256_set1_ps(-0.0f)), _mm256_set1_ps(half));
    v[i] = _mm256_cvttps_epi32(_mm256_add_ps(r, h));
  }
  // The packs work within 128-bit lanes; the permutation puts the groups of four back in order.
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  const __m256i all = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), all);
  __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), all), _mm256_set1_epi16(1));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
  sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(s));
  sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

GLMLITE_INLINE void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
}  // namespace glmlite
