// The parts in which a step is done. Most ops make a row of that row alone. Of a long step (an image's patches, which
// all see each other), such neighbours run over some hundred rows, and then over the next: what they hand to each other
// stays in the cache, and there is no need of room for all of its rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../buffers.h"
#include "../program.h"

namespace glmlite {

// Neighbours of the list, the ops [first, last).
struct Stretch {
  size_t first, last;
  bool by_rows;
  std::vector<int> rounded;  // values from before that its products with quantized weights read
};

// Some rows of a stretch: those of the tokens [begin, end).
struct Part {
  const Stretch* stretch;
  int64_t begin, end;
  bool begins_step() const { return stretch->first == 0 && begin == 0; }
};

class Strips {
 public:
  explicit Strips(const Program& program);

  // Rows that a step of so many tokens has in a part, at most.
  int64_t rows(int64_t tokens) const;
  // rows: as above, or `tokens`.
  std::vector<Part> parts(int64_t tokens, int64_t rows) const;
  // Where values lie, be there parts or not.
  std::vector<Place> places(const std::vector<ValueInfo>& values) const;

 private:
  const Stretch whole_;
  std::vector<Stretch> stretches_;  // none: all steps are done at once
};

}  // namespace glmlite
