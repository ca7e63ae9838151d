#include "text/trie.h"

#include <algorithm>
#include <new>

namespace glmlite {

Trie::Trie(std::vector<std::pair<std::string_view, int32_t>> entries) {
  std::sort(entries.begin(), entries.end());
  struct Range {  // the strings that go through a node
    size_t begin, end, depth;
  };
  std::vector<Range> ranges{{0, entries.size(), 0}};
  nodes_.push_back({0, -1, 0, 0});
  for (size_t i = 0; i < nodes_.size(); ++i) {  // in the order of depth, so children lie side by side
    auto [begin, end, depth] = ranges[i];
    while (begin < end && entries[begin].first.size() == depth) {
      if (nodes_[i].value < 0) nodes_[i].value = entries[begin].second;
      ++begin;
    }
    nodes_[i].children = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const char byte = entries[begin].first[depth];
      size_t other = begin;
      while (other < end && entries[other].first[depth] == byte) ++other;
      if (nodes_.size() == kNone) throw std::bad_alloc();
      nodes_.push_back({0, -1, 0, static_cast<uint8_t>(byte)});
      ranges.push_back({begin, other, depth + 1});
      ++nodes_[i].count;
      begin = other;
    }
  }
}

Trie::Node Trie::next(Node node, unsigned char byte) const {
  if (node == kNone) return kNone;
  const auto first = nodes_.begin() + nodes_[node].children, last = first + nodes_[node].count;
  const auto found = std::lower_bound(first, last, byte, [](const Entry& e, unsigned char b) { return e.byte < b; });
  return found != last && found->byte == byte ? static_cast<Node>(found - nodes_.begin()) : kNone;
}

Trie::Node Trie::next(Node node, std::string_view bytes) const {
  for (size_t i = 0; i < bytes.size() && node != kNone; ++i) node = next(node, static_cast<unsigned char>(bytes[i]));
  return node;
}

}  // namespace glmlite
