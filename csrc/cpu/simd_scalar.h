// F32x16, sixteen f32 lanes, in plain C++: the specification of what the other simd_<isa>.h do in registers.
// Every operation rounds once, to nearest even; only a NaN's payload may differ between instruction sets.
// Functions with a lane count touch only the first n lanes in memory, 0 <= n <= 16; lanes not loaded are 0.
#pragma once
#include <math.h>
#include <string.h>

#include <cstdint>

namespace glmlite {
namespace {

struct F32x16 {
  float v[16];
};
struct Mask16 {
  bool lane[16];
};

constexpr int kAccumulators = 6;  // F32x16 that a tile may keep in registers, besides its operands

// Built with no -m flags, where this is a call of the C library or one instruction, and the same bits either way.
inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }

inline float f16_to_f32(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff, bits;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact
    float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    memcpy(&bits, &magnitude, 4);
  } else {
    bits = (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | mantissa << 13;
  }
  bits |= sign;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline uint16_t f32_to_f16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // from 65520 on: infinity
  if (magnitude < 0x38800000) {  // below 2^-14 f16 counts in 2^-24, what f32 counts in from 0.5 on: the sum rounds
    float shifted;
    memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    memcpy(&magnitude, &shifted, 4);
    return static_cast<uint16_t>(sign | (magnitude - 0x3f000000));
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);  // a tie goes to the even mantissa
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23)) >> 13));
}

template <class Op>
inline F32x16 each(Op op) {
  F32x16 y;
  for (int l = 0; l < 16; ++l) y.v[l] = op(l);
  return y;
}

inline F32x16 set1(float x) {
  return each([&](int) { return x; });
}
inline F32x16 load(const float* p) {
  return each([&](int l) { return p[l]; });
}
inline F32x16 load(const float* p, int n) {
  return each([&](int l) { return l < n ? p[l] : 0.0f; });
}
inline void store(float* p, F32x16 x, int n = 16) {
  for (int l = 0; l < n; ++l) p[l] = x.v[l];
}
inline F32x16 load_f16(const uint16_t* p, int n = 16) {
  return each([&](int l) { return l < n ? f16_to_f32(p[l]) : 0.0f; });
}
inline void store_f16(uint16_t* p, F32x16 x, int n = 16) {
  for (int l = 0; l < n; ++l) p[l] = f32_to_f16(x.v[l]);
}

// x: whole numbers in -128..127; what a NaN becomes is not said.
inline void store_i8(int8_t* p, F32x16 x) {
  for (int l = 0; l < 16; ++l) p[l] = static_cast<int8_t>(x.v[l] == x.v[l] ? x.v[l] : 0.0f);
}

// x: 64 numbers that round, ties to even, to whole ones n from 0 to 16383; n / 128 to high, n % 128 to low. What a NaN
// becomes is not said.
inline void store_halves(int8_t* high, int8_t* low, const F32x16 (&x)[4]) {
  for (int i = 0; i < 64; ++i) {
    constexpr float kShift = 12582912.0f;  // see round
    const float value = x[i / 16].v[i % 16];
    const int whole = value == value ? static_cast<int>(value + kShift - kShift) : 0;
    high[i] = static_cast<int8_t>(whole >> 7);
    low[i] = static_cast<int8_t>(whole & 127);
  }
}

inline F32x16 add(F32x16 a, F32x16 b) {
  return each([&](int l) { return a.v[l] + b.v[l]; });
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return each([&](int l) { return a.v[l] - b.v[l]; });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return each([&](int l) { return a.v[l] * b.v[l]; });
}
inline F32x16 div(F32x16 a, F32x16 b) {
  return each([&](int l) { return a.v[l] / b.v[l]; });
}
// a * b + c, rounded once
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each([&](int l) { return fma(a.v[l], b.v[l], c.v[l]); });
}
// a > b ? a : b, so b where either is NaN; min likewise
inline F32x16 max(F32x16 a, F32x16 b) {
  return each([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
}
inline F32x16 min(F32x16 a, F32x16 b) {
  return each([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; });
}
inline F32x16 abs(F32x16 x) {
  return each([&](int l) { return ::fabsf(x.v[l]); });
}
// To the nearest integer, ties to even. |x| < 2^22.
inline F32x16 round(F32x16 x) {
  return each([&](int l) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23, from where f32 counts in ones
    return x.v[l] + kShift - kShift;
  });
}
// x * 2^n, rounded once; n an integer in -150..128, x normal and near 1
inline F32x16 scale2(F32x16 x, F32x16 n) {
  return each([&](int l) {
    int whole = n.v[l] == n.v[l] ? static_cast<int>(n.v[l]) : 0, half = whole >> 1;
    uint32_t bits[2] = {static_cast<uint32_t>(half + 127) << 23, static_cast<uint32_t>(whole - half + 127) << 23};
    float power[2];
    memcpy(power, bits, 8);
    return x.v[l] * power[0] * power[1];
  });
}

inline Mask16 less(F32x16 a, F32x16 b) {
  Mask16 m;
  for (int l = 0; l < 16; ++l) m.lane[l] = a.v[l] < b.v[l];
  return m;
}
// Where one of them is NaN, too.
inline Mask16 not_less(F32x16 a, F32x16 b) {
  Mask16 m;
  for (int l = 0; l < 16; ++l) m.lane[l] = !(a.v[l] < b.v[l]);
  return m;
}
inline Mask16 is_nan(F32x16 x) {
  Mask16 m;
  for (int l = 0; l < 16; ++l) m.lane[l] = x.v[l] != x.v[l];
  return m;
}
// lanes 0 .. n - 1
inline Mask16 first_lanes(int n) {
  Mask16 m;
  for (int l = 0; l < 16; ++l) m.lane[l] = l < n;
  return m;
}
inline bool any(Mask16 m) {
  bool found = false;
  for (int l = 0; l < 16; ++l) found |= m.lane[l];
  return found;
}
// m ? a : b
inline F32x16 select(Mask16 m, F32x16 a, F32x16 b) {
  return each([&](int l) { return m.lane[l] ? a.v[l] : b.v[l]; });
}
// m ? x : 0
inline F32x16 keep(Mask16 m, F32x16 x) { return select(m, x, set1(0.0f)); }
// Lane l of x to lane l ^ kApart, a power of two below 16.
template <int kApart>
inline F32x16 swap_lanes(F32x16 x) {
  return each([&](int l) { return x.v[l ^ kApart]; });
}

// The 16 lanes as a tree: l with l + 8, then l + 4, l + 2, l + 1. max_lanes likewise, as max(l, l + 8) and so on.
inline float sum_lanes(F32x16 x) {
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) x.v[l] += x.v[l + half];
  return x.v[0];
}
// Lane i: sum_lanes of the vector at rows + 16 i.
inline F32x16 sum_rows(const float* rows) {
  return each([&](int l) { return sum_lanes(load(rows + 16 * l)); });
}
inline float max_lanes(F32x16 x) {
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) x.v[l] = x.v[l] > x.v[l + half] ? x.v[l] : x.v[l + half];
  return x.v[0];
}

}  // namespace
}  // namespace glmlite
