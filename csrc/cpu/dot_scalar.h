// Integer primitives in plain C++. See linear.inc for what each must do.
#pragma once
#include <cstdint>
#include <cstring>

#include "../half.h"
#include "inline.h"
#include "simd_scalar.h"

namespace glmlite {
namespace {

constexpr int kTilePanels = 1, kTileTokens = 1, kDirectTokens = 1, kFloatSums = 1;
constexpr int kPeakDots = 1, kPeakQuads = 1;
constexpr bool kTileSumsInRegisters = false;
constexpr int kCodeOffset = 0;

struct Codes {
  uint8_t v[64];
};
struct Bytes16 {
  uint8_t v[16];
};
struct Ints {
  int32_t v[16];
};
struct Quad {
  int8_t v[4];
};

GLMLITE_INLINE Codes load_codes(const uint8_t* p) {
  Codes r;
  memcpy(r.v, p, 64);
  return r;
}
GLMLITE_INLINE void store_codes(uint8_t* p, Codes c) { memcpy(p, c.v, 64); }
template <int kShift>
GLMLITE_INLINE uint8_t field(uint8_t v, int mask) {
  return static_cast<uint8_t>((kShift > 0 ? v >> (kShift > 0 ? kShift : 0) : v << (kShift < 0 ? -kShift : 0)) & mask);
}
template <int kShift>
GLMLITE_INLINE Codes field(Codes c, int mask) {
  Codes r;
  for (int i = 0; i < 64; ++i) r.v[i] = field<kShift>(c.v[i], mask);
  return r;
}
GLMLITE_INLINE Codes join(Codes a, Codes b) {
  for (int i = 0; i < 64; ++i) a.v[i] |= b.v[i];
  return a;
}
GLMLITE_INLINE Codes lookup(Codes c, const uint8_t* table) {
  for (int i = 0; i < 64; ++i) c.v[i] = table[c.v[i]];
  return c;
}
GLMLITE_INLINE Codes offset_signed(Codes c) { return c; }
GLMLITE_INLINE void transpose(Codes (&c)[4]) {
  Codes r[4];
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) r[i / 4].v[4 * j + i % 4] = c[j / 4].v[4 * i + j % 4];
  }
  for (int i = 0; i < 4; ++i) c[i] = r[i];
}

GLMLITE_INLINE Bytes16 load_bytes(const uint8_t* p) {
  Bytes16 r;
  memcpy(r.v, p, 16);
  return r;
}
GLMLITE_INLINE Bytes16 shift_right(Bytes16 b, int count) {
  for (int i = 0; i < 16; ++i) b.v[i] = static_cast<uint8_t>(b.v[i] >> count);
  return b;
}
template <int kShift>
GLMLITE_INLINE Bytes16 field(Bytes16 b, int mask) {
  for (int i = 0; i < 16; ++i) b.v[i] = field<kShift>(b.v[i], mask);
  return b;
}
GLMLITE_INLINE Bytes16 join(Bytes16 a, Bytes16 b) {
  for (int i = 0; i < 16; ++i) a.v[i] |= b.v[i];
  return a;
}
GLMLITE_INLINE Bytes16 subtract(Bytes16 a, int n) {
  for (int i = 0; i < 16; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] - n);
  return a;
}
GLMLITE_INLINE F32x16 to_f32(Bytes16 b) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(static_cast<int8_t>(b.v[i]));
  return r;
}

GLMLITE_INLINE F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = bfloat_to_float(p[i]);
  return r;
}

GLMLITE_INLINE Ints set1(int32_t x) {
  Ints r;
  for (int i = 0; i < 16; ++i) r.v[i] = x;
  return r;
}
GLMLITE_INLINE Quad load_quad(const int8_t* q) {
  Quad r;
  memcpy(r.v, q, 4);
  return r;
}

// Dot does the same for all of these numbers of bits.
template <int kBits>
constexpr int kTileBits = kBits == 8 ? 8 : 6;

template <int kBits>
struct Dot {
  Ints sum;
  GLMLITE_INLINE void start(int32_t first) { sum = set1(first); }
  template <int kStep>
  GLMLITE_INLINE void add(Codes c, Quad q) {
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 4; ++i)
        sum.v[r] += (kBits == 8 ? static_cast<int8_t>(c.v[4 * r + i]) : c.v[4 * r + i]) * q.v[i];
    }
  }
  GLMLITE_INLINE void add_values(Codes c, Quad q) { add<0>(c, q); }
  GLMLITE_INLINE void settle() {}
  GLMLITE_INLINE F32x16 bits() const {
    F32x16 r;
    memcpy(r.v, sum.v, sizeof r.v);
    return r;
  }
  GLMLITE_INLINE F32x16 total() const {
    F32x16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(sum.v[i]);
    return r;
  }
};

GLMLITE_INLINE void max_magnitudes(const float* x, int64_t blocks, int32_t* largest) {
  for (int64_t b = 0; b < 8; ++b) {
    largest[b] = 0;
    for (int64_t i = 32 * b; i < 32 * b + 32 && b < blocks; ++i) {
      int32_t bits;
      memcpy(&bits, x + i, 4);
      bits &= 0x7fffffff;
      largest[b] = bits > largest[b] ? bits : largest[b];
    }
  }
}
GLMLITE_INLINE void round_blocks(const float* x, const float* factor, float half, int8_t* q, int64_t q_stride,
                                 int32_t* sums) {
  for (int b = 0; b < 8; ++b, x += 32, q += q_stride) {
    sums[b] = sums[8 + b] = 0;
    for (int i = 0; i < 32; ++i) {
      int v = 0;
      if (factor[b] != 0) {
        const float r = x[i] * factor[b];
        v = static_cast<int>(r + (r < 0 ? -half : half));
      }
      q[i] = static_cast<int8_t>(v);
      sums[i / 16 * 8 + b] += v;
    }
  }
}

}  // namespace
}  // namespace glmlite
