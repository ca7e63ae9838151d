// Strings by their beginnings.
#pragma once
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace glmlite {

class Trie {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0, kNone = UINT32_MAX;

  // Strings that are not empty, with values from 0 on; of equal strings the least value counts. Takes as long as they
  // have bytes.
  explicit Trie(std::vector<std::pair<std::string_view, int32_t>> entries = {});

  // The node that `byte` leads to. From kNone every byte leads to kNone.
  Node next(Node node, unsigned char byte) const;
  Node next(Node node, std::string_view bytes) const;
  int32_t value(Node node) const { return node == kNone ? -1 : nodes_[node].value; }  // -1: no string ends there

 private:
  struct Entry {
    uint32_t children;  // where they begin, in the order of their bytes
    int32_t value;
    uint16_t count;  // of the children
    uint8_t byte;    // that leads here
  };
  std::vector<Entry> nodes_;
};

}  // namespace glmlite
