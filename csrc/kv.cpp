#include "kv.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace glmlite {

PageTable::PageTable(int64_t pages, int64_t page_tokens) : page_tokens_(page_tokens), holders_(pages, 0) {
  for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
}

PageTable::Sequence& PageTable::find(int id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) throw std::invalid_argument("sequence " + std::to_string(id) + ": there is none");
  return it->second;
}

const PageTable::Sequence& PageTable::at(int id) const { return const_cast<PageTable*>(this)->find(id); }

int PageTable::create() {
  sequences_[next_id_] = {};
  return next_id_++;
}

int PageTable::fork(int id, int64_t length) {
  const Sequence& from = find(id);
  if (length < 0 || length > from.length)
    throw std::invalid_argument("fork: length " + std::to_string(length) + ", sequence " + std::to_string(id) +
                                " has " + std::to_string(from.length));
  Sequence copy;
  copy.length = length;
  copy.pages.assign(from.pages.begin(), from.pages.begin() + (length + page_tokens_ - 1) / page_tokens_);
  for (int32_t page : copy.pages) ++holders_[page];
  sequences_[next_id_] = std::move(copy);
  return next_id_++;
}

void PageTable::release(int32_t page) {
  if (--holders_[page] == 0) free_.push_back(page);
}

void PageTable::truncate(int id, int64_t length) {
  Sequence& s = find(id);
  if (length < 0 || length > s.length)
    throw std::invalid_argument("truncate: length " + std::to_string(length) + ", sequence " + std::to_string(id) +
                                " has " + std::to_string(s.length));
  const auto pages = static_cast<size_t>((length + page_tokens_ - 1) / page_tokens_);
  for (size_t i = pages; i < s.pages.size(); ++i) release(s.pages[i]);
  s.pages.resize(pages);
  s.length = length;
}

void PageTable::free(int id) {
  for (int32_t page : find(id).pages) release(page);
  sequences_.erase(id);
}

bool PageTable::reserve(int id, int64_t count, std::vector<Copy>* copies) {
  Sequence& s = find(id);
  const auto pages = static_cast<size_t>((s.length + count + page_tokens_ - 1) / page_tokens_);
  const bool partial = s.length % page_tokens_ != 0;
  const bool copy = count > 0 && partial && holders_[s.pages[s.length / page_tokens_]] > 1;
  const size_t fresh = (pages > s.pages.size() ? pages - s.pages.size() : 0) + (copy ? 1 : 0);
  if (fresh > free_.size()) return false;
  const auto take = [&] {
    const int32_t page = free_.back();
    free_.pop_back();
    holders_[page] = 1;
    return page;
  };
  if (copy) {
    int32_t& page = s.pages[s.length / page_tokens_];
    const int32_t own = take();
    copies->push_back({page, own});
    release(page);
    page = own;
  }
  while (s.pages.size() < pages) s.pages.push_back(take());
  return true;
}

void PageTable::extend(int id, int64_t count) { find(id).length += count; }

}  // namespace glmlite
