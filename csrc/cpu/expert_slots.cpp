#include "expert_slots.h"

#include <algorithm>
#include <string>
#include <utility>

namespace glmlite {

namespace {

// Experts of a round whose products wait for reads: fewer would meet at more barriers, more would begin later.
constexpr size_t kRound = 8;

size_t largest(const std::vector<ExpertSlots::Group>& groups) {
  size_t most = 0;
  for (const auto& group : groups) most = std::max(most, group.stride);
  return most;
}

size_t in_all(const std::vector<ExpertSlots::Group>& groups) {
  int64_t count = 0;
  for (const auto& group : groups) count += group.count;
  return static_cast<size_t>(count);
}

}  // namespace

ExpertSlots::ExpertSlots(const PackedFile& file, std::vector<Group> groups, size_t room)
    : groups_(std::move(groups)),
      file_(file, File::Reads::kDirect),
      slot_bytes_(largest(groups_)),
      slots_(std::min(std::max<size_t>(1, room / slot_bytes_), in_all(groups_))),
      threads_(file_.file(), kReadThreads,
               [this](int64_t slot, std::exception_ptr failure) { done(slot, std::move(failure)); }) {
  memory_ = Memory(slots_.size() * slot_bytes_, "experts");
  size_t most = 0;
  for (const Group& group : groups_) {
    slots_of_.emplace_back(static_cast<size_t>(group.count), -1);
    most = std::max(most, static_cast<size_t>(group.count));
  }
  order_.reserve(most);  // so that nothing is allocated in a step
  ends_.reserve(most);
  missing_.reserve(most);
  parts_.reserve(most * (slot_bytes_ / kReadBytes + 1));
  threads_.reserve(parts_.capacity());
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].at = recent_.insert(recent_.end(), static_cast<int32_t>(i));
}

void ExpertSlots::begin(int group, const std::vector<int32_t>& experts) {
  group_ = group;
  order_.clear();
  ends_.clear();
  for (const int32_t expert : experts) {
    const int32_t slot = slots_of_[group][expert];
    if (slot < 0) continue;
    order_.push_back(expert);
    slots_[slot].used = true;
    recent_.splice(recent_.begin(), recent_, slots_[slot].at);
  }
  next_ = order_.size();
  if (next_ > 0) ends_.push_back(next_);
  for (const int32_t expert : experts)
    if (slots_of_[group][expert] < 0) order_.push_back(expert);
  const size_t round = std::min(kRound, std::max<size_t>(1, slots_.size() / 2));
  for (size_t at = next_; at < order_.size(); at += round) ends_.push_back(std::min(at + round, order_.size()));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    missing_.clear();
    size_t at = 0;
    for (const size_t end : ends_) {
      missing_.push_back(at < next_ ? 0 : static_cast<int>(end - at));
      at = end;
    }
  }
  read_more();
}

// The least recently used that no round needs, or -1.
int32_t ExpertSlots::free_slot() {
  const auto found = std::find_if(recent_.rbegin(), recent_.rend(), [&](int32_t slot) { return !slots_[slot].used; });
  return found == recent_.rend() ? -1 : *found;
}

void ExpertSlots::read_more() {
  parts_.clear();
  for (int32_t index; next_ < order_.size() && (index = free_slot()) >= 0; ++next_) {
    Slot& slot = slots_[index];
    const Group& group = groups_[group_];
    if (slot.group >= 0) slots_of_[slot.group][slot.expert] = -1;
    slot.group = group_;
    slot.expert = order_[next_];
    slot.used = true;
    slot.round = static_cast<int>(std::upper_bound(ends_.begin(), ends_.end(), next_) - ends_.begin());
    slots_of_[group_][slot.expert] = index;
    recent_.splice(recent_.begin(), recent_, slot.at);
    const uint64_t from = group.offset + group.stride * static_cast<uint64_t>(slot.expert);
    uint8_t* to = memory_.data() + slot_bytes_ * static_cast<size_t>(index);
    slot.parts = 0;
    for (uint64_t at = 0; at < group.stride; at += kReadBytes, ++slot.parts)
      parts_.push_back({from + at, std::min<uint64_t>(kReadBytes, group.stride - at), to + at, index});
  }
  if (!parts_.empty()) threads_.read(parts_);
}

void ExpertSlots::done(int64_t index, std::exception_ptr failure) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure && !failure_) {
    failure_ = std::move(failure);
    failed_.store(true, std::memory_order_relaxed);
  }
  Slot& slot = slots_[static_cast<size_t>(index)];
  if (--slot.parts == 0 && --missing_[slot.round] == 0) read_.notify_all();
}

void ExpertSlots::wait(int round) {
  std::unique_lock<std::mutex> lock(mutex_);
  read_.wait(lock, [&] { return missing_[round] == 0; });
}

void ExpertSlots::finish(int index) {
  const Round round = this->round(index);
  for (const int32_t* expert = round.begin; expert < round.end; ++expert)
    slots_[slots_of_[group_][*expert]].used = false;
  read_more();
}

void ExpertSlots::rethrow() {
  if (!failed()) return;
  const std::exception_ptr failure = std::exchange(failure_, nullptr);
  failed_.store(false, std::memory_order_relaxed);
  for (Slot& slot : slots_) {
    if (slot.group >= 0) slots_of_[slot.group][slot.expert] = -1;
    slot.group = -1;
  }
  std::rethrow_exception(failure);
}

}  // namespace glmlite
