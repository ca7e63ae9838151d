// Who holds which page of the KV cache: sequences, and the pages that they share.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

namespace glmlite {

// Only the bookkeeping: the pages' contents belong to the executor. An entry is one token's keys and values.
class PageTable {
 public:
  struct Sequence {
    std::vector<int32_t> pages;
    int64_t length = 0;  // entries
  };
  // A page that had to become the sequence's own before it is written: its entries must be copied.
  struct Copy {
    int32_t from, to;
  };

  PageTable(int64_t pages, int64_t page_tokens);

  int create();
  // A new sequence with the first `length` entries of another; whole and partial pages are shared.
  int fork(int id, int64_t length);
  void truncate(int id, int64_t length);
  void free(int id);
  const Sequence& at(int id) const;  // throws std::invalid_argument: no such sequence

  // Makes the next `count` entries of a sequence writable: new pages, and a copy of the last one if it is shared. Its
  // length does not change. Returns false, having changed nothing, if there are not enough free pages.
  bool reserve(int id, int64_t count, std::vector<Copy>* copies);
  void extend(int id, int64_t count);  // within what was reserved

  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t page_tokens() const { return page_tokens_; }

 private:
  Sequence& find(int id);
  void release(int32_t page);

  int64_t page_tokens_;
  std::vector<int32_t> holders_;  // by page: sequences that hold it
  std::vector<int32_t> free_;
  std::map<int, Sequence> sequences_;
  int next_id_ = 1;
};

}  // namespace glmlite
