#include "layout.h"

#include <algorithm>
#include <stdexcept>

#include "keys.h"

namespace glmlite {

namespace {

bool has(const std::vector<int32_t>& ids, int32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

void append(std::vector<int32_t>& ids, const std::vector<int32_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

}  // namespace

Prompts::Prompts(const Metadata& metadata, int64_t vocabulary) {
  const Keys keys(metadata);
  const std::string at = "glmlite.infill.";
  if (!keys.has(at + "start")) return;
  const auto most = static_cast<uint64_t>(vocabulary - 1);
  start_ = static_cast<int32_t>(keys.integer(at + "start", most));
  default_ = static_cast<int32_t>(keys.integer(at + "default", most));
  masks_ = keys.ids(at + "masks", vocabulary);
  before_ = keys.ids(at + "before", vocabulary);
  after_ = keys.ids(at + "after", vocabulary);
  several_ = keys.flag(at + "several");
}

std::vector<int32_t> Prompts::prompt(const Tokenizer& tokenizer, std::vector<int32_t> ids) const {
  if (causal()) return tokenizer.begin(ids);
  if (has(ids, start_)) {
    const std::vector<int32_t> twice{default_, start_, default_, start_};
    while (ids.size() >= twice.size() && std::equal(twice.begin(), twice.end(), ids.end() - 4))
      ids.resize(ids.size() - 2);
    return ids;
  }
  std::vector<int32_t> made;
  if (ids.size() < before_.size() || !std::equal(before_.begin(), before_.end(), ids.begin())) made = before_;
  append(made, ids);
  if (std::none_of(ids.begin(), ids.end(), [&](int32_t id) { return has(masks_, id); })) made.push_back(default_);
  append(made, after_);
  made.push_back(start_);
  return made;
}

Layout Prompts::layout(const std::vector<int32_t>& ids) const {
  if (!causal()) return infilling(ids);
  Layout layout;
  for (size_t i = 0; i < ids.size(); ++i) layout.positions.push_back({static_cast<int32_t>(i), 0});
  layout.next = {static_cast<int32_t>(ids.size()), 0};
  layout.step = {1, 0};
  return layout;
}

// A context token stands at (index, 0), the j-th token of a piece, from 1, at (its mask, j).
Layout Prompts::infilling(const std::vector<int32_t>& ids) const {
  std::vector<int32_t> starts, masks;
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] == start_ && (several_ || starts.empty())) starts.push_back(static_cast<int32_t>(i));
  if (several_) {
    const size_t end = starts.empty() ? ids.size() : static_cast<size_t>(starts[0]);
    for (size_t i = 0; i < end; ++i)
      if (has(masks_, ids[i])) masks.push_back(static_cast<int32_t>(i));
  } else {
    for (size_t m = 0; m < masks_.size() && masks.empty(); ++m) {
      const auto found = std::find(ids.begin(), ids.end(), masks_[m]);
      if (found != ids.end()) masks.push_back(static_cast<int32_t>(found - ids.begin()));
    }
  }
  if (starts.empty() || masks.size() < starts.size())
    throw std::invalid_argument(
        "prompt: has " + std::to_string(masks.size()) + " masks and " + std::to_string(starts.size()) +
        " tokens that start a piece, expected at least one and no more than masks: tokenize with "
        "GLMLITE_PROMPT");
  Layout layout;
  layout.context = starts[0];
  for (size_t i = 0; i < ids.size(); ++i) layout.positions.push_back({static_cast<int32_t>(i), 0});
  for (size_t piece = 0; piece < starts.size(); ++piece) {
    const auto begin = static_cast<size_t>(starts[piece]);
    const size_t end = piece + 1 < starts.size() ? static_cast<size_t>(starts[piece + 1]) : ids.size();
    for (size_t i = begin; i < end; ++i) layout.positions[i] = {masks[piece], static_cast<int32_t>(i - begin + 1)};
  }
  layout.next = {layout.positions.back()[0], layout.positions.back()[1] + 1};
  layout.step = {0, 1};
  return layout;
}

}  // namespace glmlite
