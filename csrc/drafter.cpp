#include "drafter.h"

#include <algorithm>
#include <utility>

namespace glmlite {

namespace {

constexpr int32_t kLooked = 32;      // places, and tokens before each, that are compared: microseconds at most
constexpr double kGrant = 1.0 / 32;  // of each step's time that wrong guesses may cost in the long run
constexpr double kMostCredit = 2;    // so that what was right for long is not lost when it ends

uint64_t pair_of(const std::vector<int32_t>& tokens, size_t second) {
  return static_cast<uint64_t>(static_cast<uint32_t>(tokens[second - 1])) << 32 | static_cast<uint32_t>(tokens[second]);
}

}  // namespace

void Drafter::add(int32_t token) {
  const size_t at = tokens_.size();
  tokens_.push_back(token);
  earlier_.push_back(-1);
  if (at == 0) return;
  const auto [place, first] = latest_.try_emplace(pair_of(tokens_, at), static_cast<int32_t>(at));
  if (!first) earlier_[at] = std::exchange(place->second, static_cast<int32_t>(at));
}

void Drafter::cut(size_t length) {
  for (; tokens_.size() > length; tokens_.pop_back(), earlier_.pop_back()) {
    if (tokens_.size() < 2) continue;
    const auto place = latest_.find(pair_of(tokens_, tokens_.size() - 1));
    if (earlier_.back() < 0)
      latest_.erase(place);
    else
      place->second = earlier_.back();
  }
}

std::vector<int32_t> Drafter::draft(size_t most, double cost) const {
  const auto affordable = static_cast<size_t>(std::max(credit_ / cost, 0.0));
  most = std::min(most, affordable);
  if (most == 0 || tokens_.empty()) return {};
  const auto last = static_cast<int32_t>(tokens_.size()) - 1;
  int32_t best = -1, agree = 0;
  for (int32_t at = earlier_[last], looked = 0; at >= 0 && looked < kLooked; at = earlier_[at], ++looked) {
    int32_t same = 2;
    while (same < kLooked && same <= at && tokens_[at - same] == tokens_[last - same]) ++same;
    if (same > agree) best = at, agree = same;
  }
  std::vector<int32_t> draft;
  // No longer than what agrees: what has stood together for long goes on together for long.
  for (size_t i = 0; best >= 0 && i < std::min(most, static_cast<size_t>(agree)); ++i) {
    const size_t at = static_cast<size_t>(best) + 1 + i;
    draft.push_back(at < tokens_.size() ? tokens_[at] : draft[at - tokens_.size()]);
  }
  return draft;
}

void Drafter::settle(size_t count, size_t right, double cost) {
  totals_.drafted += count;
  totals_.right += right;
  const double gain = static_cast<double>(right) - static_cast<double>(count) * cost;
  credit_ = std::min(credit_ + kGrant + gain, kMostCredit);
}

}  // namespace glmlite
