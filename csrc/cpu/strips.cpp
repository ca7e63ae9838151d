#include "strips.h"

#include <algorithm>

namespace glmlite {

namespace {

// Each strip reads a stretch's weights anew, which for so many rows is little beside the products. Other sizes were not
// compared.
constexpr int64_t kStripRows = 512;
constexpr int64_t kLongStep = 4 * kStripRows;  // above the steps that prompts are read in

// Whether each row of the op's value is made of that row of what it reads.
bool by_rows(const Program& program, const Op& op) {
  return !program.values[op.out].selected && !op.is<ops::Attention>() && !op.is<ops::LatentAttention>();
}

// Experts gather their rows from all of a step.
bool has_mixture(const Program& program) {
  return std::any_of(program.ops.begin(), program.ops.end(), [](const Op& op) { return op.is<ops::Moe>(); });
}

}  // namespace

Strips::Strips(const Program& program) : whole_{0, program.ops.size(), false, {}} {
  if (has_mixture(program)) return;
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const bool rows = by_rows(program, program.ops[i]);
    if (i == 0 || !rows || !stretches_.back().by_rows) stretches_.push_back({i, i, rows, {}});
    Stretch& stretch = stretches_.back();
    stretch.last = i + 1;
    each_input(program.ops[i], [&](int id) {
      const bool before = static_cast<size_t>(id) < stretch.first;
      auto& rounded = stretch.rounded;
      if (rows && before && program.values[id].quantized && std::count(rounded.begin(), rounded.end(), id) == 0)
        rounded.push_back(id);
    });
  }
}

// A value that its own stretch alone reads has the rows of a part. Another lives on, while a stretch that reads it is
// not done with all rows. Rounded rows are those of a part: each part rounds what it reads.
std::vector<Place> Strips::places(const std::vector<ValueInfo>& values) const {
  std::vector<Place> places = places_of(values);
  for (const Stretch& stretch : stretches_) {
    const auto first = static_cast<int>(stretch.first), last = static_cast<int>(stretch.last);
    for (int id = 0; id < last; ++id) {
      Place& place = places[id];
      if (place.room == Room::kSelected) continue;
      place.quantized = Room::kPart;
      if (place.last_use < first || place.last_use >= last) continue;
      if (stretch.by_rows && id >= first) {
        place.room = Room::kPart;
      } else {
        place.until = last - 1;
      }
    }
  }
  return places;
}

int64_t Strips::rows(int64_t tokens) const {
  if (stretches_.empty() || tokens < kLongStep) return tokens;
  const int64_t strips = (tokens + kStripRows - 1) / kStripRows;
  return (tokens + strips - 1) / strips;
}

std::vector<Part> Strips::parts(int64_t tokens, int64_t rows) const {
  if (rows == tokens) return {{&whole_, 0, tokens}};
  std::vector<Part> parts;
  for (const Stretch& stretch : stretches_) {
    const int64_t step = stretch.by_rows ? rows : tokens;
    for (int64_t begin = 0; begin < tokens; begin += step)
      parts.push_back({&stretch, begin, std::min(begin + step, tokens)});
  }
  return parts;
}

}  // namespace glmlite
