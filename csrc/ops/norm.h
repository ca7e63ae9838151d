// Norms of rows.
#pragma once
#include "slots.h"

namespace glmlite::ops {

// x / sqrt(mean(x^2) + eps) * w + add
struct RmsNorm {
  static constexpr const char* kName = "rms_norm";
  int x = -1, add = -1;
  int w = -1;
  float eps = 0;

  static auto inputs() { return std::make_tuple(&RmsNorm::x, &RmsNorm::add); }
  static auto weights() { return std::make_tuple(&RmsNorm::w); }
  static RmsNorm read(Slots& s) {
    RmsNorm op;
    op.x = s.input("x");
    op.add = s.addend(op.x);
    s.width(s.columns(op.x));
    op.w = s.vector("w", s.width());
    op.eps = static_cast<float>(s.number("eps", 0, 1));
    return op;
  }
};

// (x - mean) / sqrt(var + eps) * w + bias
struct LayerNorm {
  static constexpr const char* kName = "layer_norm";
  int x = -1;
  int w = -1, bias = -1;
  float eps = 0;

  static auto inputs() { return std::make_tuple(&LayerNorm::x); }
  static auto weights() { return std::make_tuple(&LayerNorm::w, &LayerNorm::bias); }
  static LayerNorm read(Slots& s) {
    LayerNorm op;
    op.x = s.input("x");
    s.width(s.columns(op.x));
    op.w = s.vector("w", s.width());
    op.bias = s.vector("b", s.width());
    op.eps = static_cast<float>(s.number("eps", 0, 1));
    return op;
  }
};

}  // namespace glmlite::ops
