// Which neighbours of the list a device may run as one: decided once, for all devices. The result has the same bits.
#pragma once
#include <vector>

#include "program.h"

namespace glmlite {

enum class Pair {
  kNone,
  kGated,  // a linear, and the swiglu that alone reads it: its result is never whole
  kNorms   // an RMS norm, and that of its result
};

struct Fusion {
  // takes(pair, first, second): whether the device has it.
  template <class Takes>
  Fusion(const Program& program, Takes takes) : values(program.values), with_next(program.ops.size(), Pair::kNone) {
    for (size_t i = 0; i + 1 < program.ops.size(); ++i) {
      const Pair pair = i > 0 && with_next[i - 1] != Pair::kNone ? Pair::kNone : pair_at(program, i);
      if (pair == Pair::kNone || !takes(pair, program.ops[i], program.ops[i + 1])) continue;
      with_next[i] = pair;
      keep_inputs(program, i);
    }
  }

  std::vector<ValueInfo> values;  // the program's, living until what is done at once has been written
  std::vector<Pair> with_next;    // by op

 private:
  static Pair pair_at(const Program& program, size_t op);
  void keep_inputs(const Program& program, size_t op);
};

}  // namespace glmlite
