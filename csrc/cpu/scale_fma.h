// How the integer sums of a tile become part of its f32 sums: by two multiply-adds. See linear.inc.
#pragma once
#include "panel.h"

namespace glmlite {
namespace {

// sum + w * d * dot, where codes are unpacked in registers; offset: kActOffset.
template <class AnyDot>
GLMLITE_INLINE F32x16 add_scaled(F32x16 w, const float* d, const float* offset, AnyDot& dot, F32x16 sum) {
  return fma(w, fma(dot.bits(), set1(*d), set1(*offset)), sum);
}

// The scales of a group of columns of kPanels panels, [kPanels][16] f32.
template <int kPanels>
struct GroupScales {
  static constexpr int kFloats = kPanels * kLanes;
  static GLMLITE_INLINE void store_panel(float* scales, F32x16 w) { store(scales, w); }
};
// Codes whose products with any activations may be multiplied with the scale w.
template <int kZeroCode>
GLMLITE_INLINE Codes codes_for_scale(Codes c, F32x16) {
  return c;
}
// Whether scales have to be finite for that.
constexpr bool kFiniteScales = false;

// What TokenScale reads.
constexpr int kScaleFields[2] = {kActScale, kActOffset};

// A token's part in a block: fields[field * kField] is its.
template <int kPanels, int kField>
struct TokenScale {
  F32x16 d, offset;
  GLMLITE_INLINE explicit TokenScale(const int32_t* fields)
      : d(set1(float_of(fields[kActScale * kField]))), offset(set1(float_of(fields[kActOffset * kField]))) {}
  // sum + w * d * dot
  template <class AnyDot>
  GLMLITE_INLINE F32x16 add(const float* scales, int panel, AnyDot& dot, F32x16 sum) const {
    return fma(load(scales + panel * kLanes), fma(dot.bits(), d, offset), sum);
  }
};

}  // namespace
}  // namespace glmlite
