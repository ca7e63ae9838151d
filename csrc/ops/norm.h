#pragma once
#include "slots.h"

namespace glmlite::ops {

struct RmsNorm {
  static constexpr const char* kName = "rms_norm";
  int x = -1, add = -1;
  int w = -1;
  float eps = 0;

  static RmsNorm read(Slots& s) {
    RmsNorm op;
    op.x = s.input("x");
    op.add = s.addend(op.x);
    s.width(s.columns(op.x));
    op.w = s.vector("w", s.width());
    op.eps = static_cast<float>(s.number("eps", 0, 1));
    return op;
  }
  template <class Self, class Fn>
  static void each_input(Self& op, Fn fn) {
    fn(op.x);
    fn(op.add);
  }
  template <class Self, class Fn>
  static void each_weight(Self& op, Fn fn) {
    fn(op.w);
  }
};

struct LayerNorm {
  static constexpr const char* kName = "layer_norm";
  int x = -1;
  int w = -1, bias = -1;
  float eps = 0;

  static LayerNorm read(Slots& s) {
    LayerNorm op;
    op.x = s.input("x");
    s.width(s.columns(op.x));
    op.w = s.vector("w", s.width());
    op.bias = s.vector("b", s.width());
    op.eps = static_cast<float>(s.number("eps", 0, 1));
    return op;
  }
  template <class Self, class Fn>
  static void each_input(Self& op, Fn fn) {
    fn(op.x);
  }
  template <class Self, class Fn>
  static void each_weight(Self& op, Fn fn) {
    fn(op.w);
    fn(op.bias);
  }
};

}  // namespace glmlite::ops
