#pragma once
#include "slots.h"

namespace glmlite::ops {

// silu(gate) * up of [gate | up].
struct Swiglu : NoWeights {
  static constexpr const char* kName = "swiglu";
  int x = -1;

  static Swiglu read(Slots& s) {
    Swiglu op;
    op.x = s.input("x");
    if (s.columns(op.x) % 2) s.bad("odd width");
    s.width(s.columns(op.x) / 2);
    return op;
  }
  template <class Self, class Fn>
  static void each_input(Self& op, Fn fn) {
    fn(op.x);
  }
};

struct Gelu : NoWeights {
  static constexpr const char* kName = "gelu";
  int x = -1;

  static Gelu read(Slots& s) {
    Gelu op;
    op.x = s.input("x");
    s.width(s.columns(op.x));
    return op;
  }
  template <class Self, class Fn>
  static void each_input(Self& op, Fn fn) {
    fn(op.x);
  }
};

// The rows of the tokens whose logits are wanted.
struct Select : NoWeights {
  static constexpr const char* kName = "select";
  int x = -1;

  static Select read(Slots& s) {
    Select op;
    op.x = s.input("x");
    s.width(s.columns(op.x));
    return op;
  }
  template <class Self, class Fn>
  static void each_input(Self& op, Fn fn) {
    fn(op.x);
  }
};

// [x | y]
struct Concat : NoWeights {
  static constexpr const char* kName = "concat";
  int x = -1, y = -1;

  static Concat read(Slots& s) {
    Concat op;
    op.x = s.input("x");
    op.y = s.input("y");
    s.width(s.columns(op.x) + s.columns(op.y));
    return op;
  }
  template <class Self, class Fn>
  static void each_input(Self& op, Fn fn) {
    fn(op.x);
    fn(op.y);
  }
};

}  // namespace glmlite::ops
