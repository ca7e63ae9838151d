// F32x16 in four q registers: NEON of AArch64. What each function does is said in simd_scalar.h.
#pragma once
#include <arm_neon.h>
#include <math.h>

#include <cstdint>

#include "inline.h"

namespace glmlite {
namespace {

struct F32x16 {
  float32x4_t v[4];
};
struct Mask16 {
  uint32x4_t q[4];  // all bits of a lane, or none
};

constexpr int kAccumulators = 6;

inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }  // one instruction on AArch64

template <class Op>
inline F32x16 each(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}
template <class Op>
inline Mask16 each_mask(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}

inline F32x16 set1(float x) {
  return each([&](int i) {
    (void)i;
    return vdupq_n_f32(x);
  });
}
inline F32x16 load(const float* p) {
  return each([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline F32x16 load(const float* p, int n) {
  if (n == 16) return load(p);
  float lanes[16] = {};
  for (int l = 0; l < n; ++l) lanes[l] = p[l];
  return load(lanes);
}
inline void store(float* p, F32x16 x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
inline void store(float* p, F32x16 x, int n) {
  if (n == 16) return store(p, x);
  float lanes[16];
  store(lanes, x);
  for (int l = 0; l < n; ++l) p[l] = lanes[l];
}
inline F32x16 load_f16(const uint16_t* p) {
  return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline F32x16 load_f16(const uint16_t* p, int n) {
  if (n == 16) return load_f16(p);
  uint16_t lanes[16] = {};
  for (int l = 0; l < n; ++l) lanes[l] = p[l];
  return load_f16(lanes);
}
inline void store_f16(uint16_t* p, F32x16 x) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
inline void store_f16(uint16_t* p, F32x16 x, int n) {
  if (n == 16) return store_f16(p, x);
  uint16_t lanes[16];
  store_f16(lanes, x);
  for (int l = 0; l < n; ++l) p[l] = lanes[l];
}
inline void store_i8(int8_t* p, F32x16 x) {
  int16x4_t v[4];
  for (int i = 0; i < 4; ++i) v[i] = vmovn_s32(vcvtq_s32_f32(x.v[i]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(vcombine_s16(v[0], v[1])), vmovn_s16(vcombine_s16(v[2], v[3]))));
}

inline void store_halves(int8_t* high, int8_t* low, const F32x16 (&x)[4]) {
  for (int i = 0; i < 4; ++i) {
    int16x8_t n[2];
    for (int h = 0; h < 2; ++h) {
      n[h] = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x[i].v[2 * h])), vmovn_s32(vcvtnq_s32_f32(x[i].v[2 * h + 1])));
    }
    const int16x8_t seven = vdupq_n_s16(127);
    vst1q_s8(high + 16 * i, vcombine_s8(vshrn_n_s16(n[0], 7), vshrn_n_s16(n[1], 7)));
    vst1q_s8(low + 16 * i, vcombine_s8(vmovn_s16(vandq_s16(n[0], seven)), vmovn_s16(vandq_s16(n[1], seven))));
  }
}

inline F32x16 add(F32x16 a, F32x16 b) {
  return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline F32x16 div(F32x16 a, F32x16 b) {
  return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Mask16 less(F32x16 a, F32x16 b) {
  return each_mask([&](int i) { return vcltq_f32(a.v[i], b.v[i]); });
}
inline Mask16 not_less(F32x16 a, F32x16 b) {
  return each_mask([&](int i) { return vmvnq_u32(vcltq_f32(a.v[i], b.v[i])); });
}
inline Mask16 is_nan(F32x16 x) {
  return each_mask([&](int i) { return vmvnq_u32(vceqq_f32(x.v[i], x.v[i])); });
}
inline Mask16 first_lanes(int n) {
  static const uint32_t kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return each_mask([&](int i) { return vcltq_u32(vld1q_u32(kLane + 4 * i), vdupq_n_u32(static_cast<uint32_t>(n))); });
}
inline bool any(Mask16 m) { return vmaxvq_u32(vorrq_u32(vorrq_u32(m.q[0], m.q[1]), vorrq_u32(m.q[2], m.q[3]))) != 0; }
inline F32x16 select(Mask16 m, F32x16 a, F32x16 b) {
  return each([&](int i) { return vbslq_f32(m.q[i], a.v[i], b.v[i]); });
}
inline F32x16 keep(Mask16 m, F32x16 x) {
  return each([&](int i) { return vreinterpretq_f32_u32(vandq_u32(m.q[i], vreinterpretq_u32_f32(x.v[i]))); });
}
// Not vmaxq_f32, which returns NaN where either is.
inline float32x4_t max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32x16 max(F32x16 a, F32x16 b) {
  return each([&](int i) { return max(a.v[i], b.v[i]); });
}
inline F32x16 min(F32x16 a, F32x16 b) { return select(less(a, b), a, b); }
inline F32x16 abs(F32x16 x) {
  return each([&](int i) { return vabsq_f32(x.v[i]); });
}
inline F32x16 round(F32x16 x) {
  return each([&](int i) { return vrndnq_f32(x.v[i]); });
}
inline F32x16 scale2(F32x16 x, F32x16 n) {
  return each([&](int i) {
    int32x4_t whole = vcvtq_s32_f32(n.v[i]), half = vshrq_n_s32(whole, 1), bias = vdupq_n_s32(127);
    int32x4_t a = vshlq_n_s32(vaddq_s32(half, bias), 23);
    int32x4_t b = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    return vmulq_f32(vmulq_f32(x.v[i], vreinterpretq_f32_s32(a)), vreinterpretq_f32_s32(b));
  });
}
template <int kApart>
inline F32x16 swap_lanes(F32x16 x) {
  return each([&](int i) {
    const float32x4_t y = x.v[i ^ kApart / 4];
    return kApart == 1 ? vrev64q_f32(y) : kApart == 2 ? vextq_f32(y, y, 2) : y;
  });
}

inline float sum_lanes(F32x16 x) {
  float32x4_t y = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  float32x2_t z = vadd_f32(vget_low_f32(y), vget_high_f32(y));
  return vget_lane_f32(z, 0) + vget_lane_f32(z, 1);
}
inline F32x16 sum_rows(const float* rows) {
  return each([&](int i) {
    float32x4_t quarters[4], pairs[2];
    for (int r = 0; r < 4; ++r) {
      const F32x16 x = load(rows + 16 * (4 * i + r));
      quarters[r] = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    }
    for (int r = 0; r < 2; ++r) {
      const float32x4_t a = quarters[2 * r], b = quarters[2 * r + 1];
      pairs[r] =
          vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
    }
    return vpaddq_f32(pairs[0], pairs[1]);
  });
}
inline float max_lanes(F32x16 x) {
  float32x4_t y = max(max(x.v[0], x.v[2]), max(x.v[1], x.v[3]));
  y = max(y, vextq_f32(y, y, 2));
  return vgetq_lane_f32(max(y, vextq_f32(y, y, 1)), 0);
}

}  // namespace
}  // namespace glmlite
