// Integer primitives of NEON with dot products: 16 rows x 4 codes in four q registers, sdot. See linear.inc.
#pragma once
#include <cstring>

#include "inline.h"
#include "simd_neon.h"

namespace glmlite {
namespace {

constexpr int kTilePanels = 1, kTileTokens = 4, kDirectTokens = 4, kFloatSums = 4;
constexpr int kPeakDots = 6, kPeakQuads = 1;
constexpr bool kTileSumsInRegisters = false;
constexpr int kCodeOffset = 0;  // sdot is signed, and codes of up to 6 bits are not negative either way

struct Codes {
  uint8x16_t v[4];
};
struct Bytes16 {
  uint8x16_t v;
};
struct Ints {
  int32x4_t v[4];
};
struct Quad {
  int8x16_t v;
};

GLMLITE_INLINE Codes load_codes(const uint8_t* p) {
  return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
}
GLMLITE_INLINE void store_codes(uint8_t* p, Codes c) {
  for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, c.v[i]);
}
template <int kShift>
GLMLITE_INLINE uint8x16_t field(uint8x16_t v, int mask) {
  if (kShift > 0) v = vshrq_n_u8(v, kShift > 0 ? kShift : 1);
  if (kShift < 0) v = vshlq_n_u8(v, kShift < 0 ? -kShift : 0);
  return vandq_u8(v, vdupq_n_u8(static_cast<uint8_t>(mask)));
}
template <int kShift>
GLMLITE_INLINE Codes field(Codes c, int mask) {
  for (int i = 0; i < 4; ++i) c.v[i] = field<kShift>(c.v[i], mask);
  return c;
}
GLMLITE_INLINE Codes join(Codes a, Codes b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vorrq_u8(a.v[i], b.v[i]);
  return a;
}
GLMLITE_INLINE Codes lookup(Codes c, const uint8_t* table) {
  for (int i = 0; i < 4; ++i) c.v[i] = vqtbl1q_u8(vld1q_u8(table), c.v[i]);
  return c;
}
GLMLITE_INLINE Codes offset_signed(Codes c) { return c; }
GLMLITE_INLINE void transpose(Codes (&c)[4]) {
  static const uint8_t kWithin[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t within = vld1q_u8(kWithin);
  Codes r[4];
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) r[i].v[j] = vqtbl1q_u8(c[j].v[i], within);
  }
  for (int i = 0; i < 4; ++i) c[i] = r[i];
}

GLMLITE_INLINE Bytes16 load_bytes(const uint8_t* p) { return {vld1q_u8(p)}; }
GLMLITE_INLINE Bytes16 shift_right(Bytes16 b, int count) {
  return {vshlq_u8(b.v, vdupq_n_s8(static_cast<int8_t>(-count)))};
}
template <int kShift>
GLMLITE_INLINE Bytes16 field(Bytes16 b, int mask) {
  return {field<kShift>(b.v, mask)};
}
GLMLITE_INLINE Bytes16 join(Bytes16 a, Bytes16 b) { return {vorrq_u8(a.v, b.v)}; }
GLMLITE_INLINE Bytes16 subtract(Bytes16 a, int n) { return {vsubq_u8(a.v, vdupq_n_u8(static_cast<uint8_t>(n)))}; }
GLMLITE_INLINE F32x16 to_f32(Bytes16 b) {
  const int8x16_t s = vreinterpretq_s8_u8(b.v);
  const int16x8_t lo = vmovl_s8(vget_low_s8(s)), hi = vmovl_s8(vget_high_s8(s));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(lo))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(hi)))}};
}
GLMLITE_INLINE F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}

GLMLITE_INLINE Ints set1(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {{v, v, v, v}};
}
GLMLITE_INLINE Quad load_quad(const int8_t* q) {
  int32_t bits;
  memcpy(&bits, q, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(bits))};
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
    for (int i = 0; i < 4; ++i) sum.v[i] = vdotq_s32(sum.v[i], vreinterpretq_s8_u8(c.v[i]), q.v);
  }
  GLMLITE_INLINE void add_values(Codes c, Quad q) { add<0>(c, q); }
  GLMLITE_INLINE void settle() {}
  GLMLITE_INLINE F32x16 bits() const {
    F32x16 r;
    for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_f32_s32(sum.v[i]);
    return r;
  }
  GLMLITE_INLINE F32x16 total() const {
    F32x16 r;
    for (int i = 0; i < 4; ++i) r.v[i] = vcvtq_f32_s32(sum.v[i]);
    return r;
  }
};

GLMLITE_INLINE void max_magnitudes(const float* x, int64_t blocks, int32_t* largest) {
  for (int64_t b = 0; b < 8; ++b) {
    uint32x4_t m = vdupq_n_u32(0);
    for (int i = 0; i < 32 && b < blocks; i += 4) {
      m = vmaxq_u32(m, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + 32 * b + i)), vdupq_n_u32(0x7fffffff)));
    }
    largest[b] = static_cast<int32_t>(vmaxvq_u32(m));
  }
}
GLMLITE_INLINE void round_blocks(const float* x, const float* factor, float half, int8_t* q, int64_t q_stride,
                                 int32_t* sums) {
  for (int b = 0; b < 8; ++b, x += 32, q += q_stride) {
    for (int h = 0; h < 2; ++h) {
      int32x4_t v[4];
      for (int i = 0; i < 4; ++i) {
        v[i] = vdupq_n_s32(0);
        if (factor[b] == 0) continue;
        const float32x4_t r = vmulq_n_f32(vld1q_f32(x + 16 * h + 4 * i), factor[b]);
        v[i] = vcvtq_s32_f32(vaddq_f32(r, vbslq_f32(vdupq_n_u32(0x80000000), r, vdupq_n_f32(half))));
      }
      const int16x8_t lo = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1])),
                      hi = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
      vst1q_s8(q + 16 * h, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
      sums[8 * h + b] = vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3])));
    }
  }
}

}  // namespace
}  // namespace glmlite
