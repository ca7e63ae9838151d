// An op as Python recorded it (glmlite/program.py), before it is checked.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace glmlite {

// Of a token's position. Ordinary models use the first alone; glmlite/program.py has the same number.
constexpr int kAxes = 3;
using Position = std::array<int32_t, kAxes>;

// The turns of one head: pair i of columns turns by freq[i] * position[axis[i]] radians, scaled by `magnitude`.
struct RopeTable {
  std::vector<int32_t> first, second, axis;
  std::vector<double> freq;
  double magnitude = 1;
  bool operator==(const RopeTable& o) const {
    return first == o.first && second == o.second && axis == o.axis && freq == o.freq && magnitude == o.magnitude;
  }
};

struct OpSpec {
  std::string kind;
  int out;
  int64_t width;
  std::map<std::string, int> inputs;
  std::map<std::string, std::vector<std::string>> weights;
  std::map<std::string, double> numbers;
  bool has_rope = false;
  RopeTable rope;
};

}  // namespace glmlite
