// How the integer sums of a tile become part of its f32 sums: by one multiply-add, for CPUs on which additions and
// conversions are not in the way of dot products but multiply-adds are. See linear.inc.
#pragma once
#include "panel.h"

namespace glmlite {
namespace {

// sum + w * d * dot, where codes are unpacked in registers.
template <class AnyDot>
GLMLITE_INLINE F32x16 add_scaled(F32x16 w, const float* d, const float*, AnyDot& dot, F32x16 sum) {
  return fma(mul(w, set1(*d)), sub(dot.bits(), set1(kSumOrigin)), sum);
}

// The scales of a group of columns of kPanels panels, [kScales + 1][kPanels][16]: the bits of w times each number that
// the scale d of activations can be but for a power of two, less the bits of that number. So those of w * d are one
// integer addition away. The last is for a NaN: 0.
template <int kPanels>
struct GroupScales {
  static constexpr int kFloats = (kScales + 1) * kPanels * kLanes;
  static GLMLITE_INLINE void store_panel(float* scales, F32x16 w) {
    for (int i = 0; i < kScales; ++i, scales += kPanels * kLanes) {
      const float number = static_cast<float>(kScales + i) / kScales;
      store(scales, subtract_bits(mul(w, set1(number)), set1(number)));
    }
    store(scales, set1(0.0f));
  }
};
// Exponents cannot be added to a zero: in rows with a scale of 0 the codes are made zero.
template <int kZeroCode>
GLMLITE_INLINE Codes codes_for_scale(Codes c, F32x16 w) {
  return fill_zero_rows(c, w, kZeroCode);
}
constexpr bool kFiniteScales = true;

// What TokenScale reads.
constexpr int kScaleFields[2] = {kActScale, kActNumber};

template <int kPanels, int kField>
struct TokenScale {
  F32x16 d;
  const int32_t number;
  GLMLITE_INLINE explicit TokenScale(const int32_t* fields)
      : d(set1(float_of(fields[kActScale * kField]))), number(fields[kActNumber * kField]) {}
  template <class AnyDot>
  GLMLITE_INLINE F32x16 add(const float* scales, int panel, AnyDot& dot, F32x16 sum) const {
    const F32x16 w_d = add_bits(load(scales + (number * kPanels + panel) * kLanes), d);
    return fma(w_d, sub(dot.bits(), set1(kSumOrigin)), sum);
  }
};

}  // namespace
}  // namespace glmlite
