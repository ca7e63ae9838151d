// Map and index a GGUF file. Knows the container, no model. (Interface for the engine; the rest is the file's own.)
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "blocks.h"

namespace glmlite {

// One tensor of the file. `data` stays valid while the Gguf lives and is not closed.
struct Tensor {
  std::string name;
  uint32_t type;  // GGUF's type number
  bool known;     // `format` is set: one of our formats
  Format format;
  std::vector<int64_t> shape;  // numpy order: the last is what lies side by side
  const uint8_t* data;
  uint64_t bytes;
};

class Gguf {
 public:
  const Tensor* find(const std::string& name) const;  // null if there is none
  // Tells the system that these pages are no longer needed; the data can still be read again.
  void release(const uint8_t* data, uint64_t bytes) const;
};

}  // namespace glmlite
