// Values of a file's metadata by their keys, of the type that is expected. What is missing or of another type is a
// FormatError: "key: what it is, what it should be".
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "gguf.h"

namespace glmlite {

class Keys {
 public:
  explicit Keys(const Metadata& metadata) : metadata_(metadata) {}

  bool has(const std::string& key) const { return lookup(metadata_, key) != nullptr; }
  // An integer of any width, 0 to `most`.
  uint64_t integer(const std::string& key, uint64_t most) const;
  bool flag(const std::string& key) const;
  std::string text(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  // Arrays of uint8, uint32, int32, uint64, float32 and float64.
  template <class T>
  std::vector<T> numbers(const std::string& key) const;
  // An array of int32: token ids, 0 to `vocabulary` - 1.
  std::vector<int32_t> ids(const std::string& key, int64_t vocabulary) const;
  // Throws FormatError unless the two have equal lengths.
  static void same_length(const std::string& a, size_t of_a, const std::string& b, size_t of_b);

 private:
  const Value& find(const std::string& key) const;

  const Metadata& metadata_;
};

}  // namespace glmlite
