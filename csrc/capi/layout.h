// How a text becomes a prompt that is continued, and where the tokens of a prompt stand: in order, or, of a model that
// reads a context in both directions and fills its blanks, as glmlite/infill.py and glmlite/models/layout.py have it.
#pragma once
#include <cstdint>
#include <vector>

#include "gguf.h"
#include "op_spec.h"
#include "text/tokenizer.h"

namespace glmlite {

struct Layout {
  std::vector<Position> positions;
  int64_t context = 0;  // the first tokens, which see each other and enter in one step; 0: causal
  Position next{}, step{};
};

class Prompts {
 public:
  Prompts(const Metadata& metadata, int64_t vocabulary);  // throws FormatError

  // The ids of a text, as they are to be read.
  std::vector<int32_t> prompt(const Tokenizer& tokenizer, std::vector<int32_t> ids) const;
  Layout layout(const std::vector<int32_t>& ids) const;  // throws std::invalid_argument
  bool causal() const { return start_ < 0; }

 private:
  Layout infilling(const std::vector<int32_t>& ids) const;

  int32_t start_ = -1, default_ = -1;
  std::vector<int32_t> masks_, before_, after_;
  bool several_ = false;
};

}  // namespace glmlite
