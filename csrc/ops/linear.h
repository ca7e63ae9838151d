// Products with matrices.
#pragma once
#include "slots.h"

namespace glmlite::ops {

// x . W^T + bias + alpha * add, of matrices one below the other.
struct Linear {
  static constexpr const char* kName = "linear";
  int x = -1, add = -1;
  std::vector<int> w, bias;  // bias: none, or one per matrix
  float alpha = 1;

  static auto inputs() { return std::make_tuple(&Linear::x, &Linear::add); }
  static auto weights() { return std::make_tuple(&Linear::w, &Linear::bias); }
  static Linear read(Slots& s) {
    Linear op;
    op.x = s.input("x");
    op.add = s.addend(op.x);
    op.w = s.matrices("w", -1, s.columns(op.x));
    if (op.w.empty()) s.bad("needs a weight");
    int64_t rows = 0;
    for (const int w : op.w) rows += s.sizes(w).n;
    op.bias = s.vectors("b", -1);
    if (!op.bias.empty() && op.bias.size() != op.w.size()) s.bad("weights and biases differ");
    for (size_t i = 0; i < op.bias.size(); ++i) s.same_rows(op.bias[i], op.w[i]);
    s.width(rows);
    op.alpha = static_cast<float>(s.number("alpha", -1e6, 1e6));
    s.multiplies(op.x, op.w);
    s.name(op.w[0]);
    return op;
  }
};

// One matrix for each head: of a head's columns the first k are multiplied with it, the last `keep` stay as they are.
struct HeadLinear {
  static constexpr const char* kName = "head_linear";
  int x = -1;
  int w = -1;  // experts: one per head
  int keep = 0;

  static auto inputs() { return std::make_tuple(&HeadLinear::x); }
  static auto weights() { return std::make_tuple(&HeadLinear::w); }
  static HeadLinear read(Slots& s) {
    HeadLinear op;
    op.x = s.input("x");
    const auto found = s.experts("w", -1, -1, -1);
    if (found.size() != 1) s.bad("needs one weight");
    op.w = found[0];
    op.keep = s.count("keep", 0, 1 << 16);
    const auto [heads, n, k] = s.sizes(op.w);
    if (s.columns(op.x) != heads * (k + op.keep)) s.bad("x has another width");
    s.width(heads * (n + op.keep));
    s.name(op.w);
    return op;
  }
};

}  // namespace glmlite::ops
