// Ops that a program begins with.
#pragma once
#include "slots.h"

namespace glmlite::ops {

// Rows of a table by token, or rows that the step is given in their place, plus rows of a table by position for each
// axis that has one.
struct Embed {
  static constexpr const char* kName = "embed";
  static constexpr size_t kMostTables = 2;  // of positions
  int table = -1;
  std::vector<int> positions;  // by axis

  static auto inputs() { return std::make_tuple(); }
  static auto weights() { return std::make_tuple(&Embed::table, &Embed::positions); }
  static Embed read(Slots& s) {
    Embed op;
    op.table = s.matrix("table", -1, s.width());
    op.positions = s.matrices("positions", -1, s.width());
    if (op.positions.size() > kMostTables) s.bad("more position tables than axes that have one");
    return op;
  }
};

// Rows that the step is given: what another program, or another part of this one, made. Several lie side by side.
struct Input {
  static constexpr const char* kName = "input";
  int64_t first = 0;  // of its columns in a row that is given

  static auto inputs() { return std::make_tuple(); }
  static auto weights() { return std::make_tuple(); }
  static Input read(Slots& s) {
    Input op;
    op.first = s.count("first", 0, 1 << 30);
    return op;
  }
};

}  // namespace glmlite::ops
