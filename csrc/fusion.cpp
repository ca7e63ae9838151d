#include "fusion.h"

#include <algorithm>

namespace glmlite {

Pair Fusion::pair_at(const Program& program, size_t i) {
  const Op &op = program.ops[i], &next = program.ops[i + 1];
  const auto* swiglu = next.as<ops::Swiglu>();
  if (op.is<ops::Linear>() && swiglu && swiglu->x == op.out && program.values[op.out].last_use == next.out)
    return Pair::kGated;
  const auto* norm = next.as<ops::RmsNorm>();
  if (op.is<ops::RmsNorm>() && norm && norm->x == op.out) return Pair::kNorms;
  return Pair::kNone;
}

void Fusion::keep_inputs(const Program& program, size_t op) {
  each_input(program.ops[op],
             [&](int id) { values[id].last_use = std::max(values[id].last_use, program.ops[op + 1].out); });
}

}  // namespace glmlite
