// Ops without weights, row by row.
#pragma once
#include "slots.h"

namespace glmlite::ops {

// silu(gate) * up of [gate | up].
struct Swiglu {
  static constexpr const char* kName = "swiglu";
  int x = -1;

  static auto inputs() { return std::make_tuple(&Swiglu::x); }
  static auto weights() { return std::make_tuple(); }
  static Swiglu read(Slots& s) {
    Swiglu op;
    op.x = s.input("x");
    if (s.columns(op.x) % 2) s.bad("odd width");
    s.width(s.columns(op.x) / 2);
    return op;
  }
};

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
struct Gelu {
  static constexpr const char* kName = "gelu";
  int x = -1;

  static auto inputs() { return std::make_tuple(&Gelu::x); }
  static auto weights() { return std::make_tuple(); }
  static Gelu read(Slots& s) {
    Gelu op;
    op.x = s.input("x");
    s.width(s.columns(op.x));
    return op;
  }
};

// x times the part of a normal distribution that is below x: 0.5 x (1 + erf(x / sqrt(2)))
struct GeluErf {
  static constexpr const char* kName = "gelu_erf";
  int x = -1;

  static auto inputs() { return std::make_tuple(&GeluErf::x); }
  static auto weights() { return std::make_tuple(); }
  static GeluErf read(Slots& s) {
    GeluErf op;
    op.x = s.input("x");
    s.width(s.columns(op.x));
    return op;
  }
};

// The rows of the tokens whose logits are wanted.
struct Select {
  static constexpr const char* kName = "select";
  int x = -1;

  static auto inputs() { return std::make_tuple(&Select::x); }
  static auto weights() { return std::make_tuple(); }
  static Select read(Slots& s) {
    Select op;
    op.x = s.input("x");
    s.width(s.columns(op.x));
    return op;
  }
};

// [x | y]
struct Concat {
  static constexpr const char* kName = "concat";
  int x = -1, y = -1;

  static auto inputs() { return std::make_tuple(&Concat::x, &Concat::y); }
  static auto weights() { return std::make_tuple(); }
  static Concat read(Slots& s) {
    Concat op;
    op.x = s.input("x");
    op.y = s.input("y");
    s.width(s.columns(op.x) + s.columns(op.y));
    return op;
  }
};

}  // namespace glmlite::ops
