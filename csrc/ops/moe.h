// Mixtures of experts: the choice, and the experts.
#pragma once
#include "slots.h"

namespace glmlite::ops {

constexpr int kMostExperts = (1 << 24) - 1;  // so that an index is exact in f32
constexpr int kPanelRows = 16;               // devices pack so many rows together

// Which experts a row goes to, and what each counts: `used` indices, ascending, then their weights.
struct Route {
  static constexpr const char* kName = "route";
  int x = -1;
  int gate = -1, bias = -1;
  int used = 0;
  float scale = 1;

  static auto inputs() { return std::make_tuple(&Route::x); }
  static auto weights() { return std::make_tuple(&Route::gate, &Route::bias); }
  static Route read(Slots& s) {
    Route op;
    op.x = s.input("x");
    op.gate = s.matrix("gate", -1, s.columns(op.x));
    const int64_t experts = s.sizes(op.gate).n;
    op.bias = s.optional_vector("bias", experts);
    op.used = s.count("used", 1, kMostExperts);
    if (op.used > experts || experts > kMostExperts)
      s.bad("chooses " + std::to_string(op.used) + " of " + std::to_string(experts) + " experts");
    op.scale = static_cast<float>(s.number("scale", 0, 1e6));
    s.width(2 * op.used);
    s.multiplies(op.x, {op.gate});
    s.name(op.gate);
    return op;
  }
};

// add + the sum over a row's experts, ascending, of weight * down . swiglu(gate . x, up . x).
struct Moe {
  static constexpr const char* kName = "moe";
  int x = -1, routing = -1, add = -1;
  std::vector<int> gate_up;  // two tensors, or one that has an expert's gate above its up
  int down = -1;
  int used = 0;
  int64_t count = 0, inner = 0;  // experts; rows of gate, and of up

  static auto inputs() { return std::make_tuple(&Moe::x, &Moe::routing, &Moe::add); }
  static auto weights() { return std::make_tuple(&Moe::gate_up, &Moe::down); }
  static Moe read(Slots& s) {
    Moe op;
    op.x = s.input("x");
    op.routing = s.input("routing");
    op.add = s.addend(op.x);
    op.gate_up = s.experts("gate_up", -1, -1, s.columns(op.x));
    if (op.gate_up.empty() || op.gate_up.size() > 2) s.bad("needs one or two weights for gate and up");
    const auto first = s.sizes(op.gate_up[0]);
    const auto [experts, used] = s.routed(op.routing);
    if (experts != first.count)
      s.bad("the routing is among " + std::to_string(experts) + " experts, there are " + std::to_string(first.count));
    op.used = s.count("used", 1, kMostExperts);
    if (op.used != used) s.bad("the routing has " + std::to_string(used) + " experts for a row");
    op.count = first.count;
    op.inner = op.gate_up.size() == 2 ? first.n : first.n / 2;
    if (op.gate_up.size() == 2) {
      const auto second = s.sizes(op.gate_up[1]);
      if (second.count != first.count || second.n != first.n) s.bad("gate and up differ");
    } else if (first.n % (2 * kPanelRows)) {
      s.damaged(op.gate_up[0], "has " + std::to_string(first.n) +
                                   " rows for gate and up together, expected a multiple of " +
                                   std::to_string(2 * kPanelRows));
    }
    const auto down = s.experts("down", op.count, s.width(), op.inner);
    if (down.size() != 1) s.bad("needs one weight for down");
    op.down = down[0];
    s.one_group({op.gate_up[0], op.gate_up.back(), op.down});
    s.multiplies(op.x, op.gate_up);
    s.name(op.gate_up[0]);
    return op;
  }
};

}  // namespace glmlite::ops
