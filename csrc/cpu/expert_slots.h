// Experts of a packed file of which only some are in memory: those that were used last. Which they are changes no
// result.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <list>
#include <mutex>
#include <vector>

#include "../memory.h"
#include "../packed_file.h"
#include "read_threads.h"

namespace glmlite {

// A mixture's op asks for its experts with `begin`, and then takes them in rounds: those in memory first, while the
// others are read.
class ExpertSlots {
 public:
  // Experts of a kind: `count` of `stride` bytes each, in whole pages, from `offset` of the file on.
  struct Group {
    uint64_t offset;
    size_t stride;
    int64_t count;
  };
  struct Round {
    const int32_t *begin, *end;
  };

  // room: bytes of memory; at least one expert is kept. Throws FileError, OutOfMemory.
  ExpertSlots(const PackedFile& file, std::vector<Group> groups, size_t room);

  size_t bytes() const { return memory_.size(); }

  // By one thread, before the others ask: starts the reading of what is missing.
  void begin(int group, const std::vector<int32_t>& experts);
  int rounds() const { return static_cast<int>(ends_.size()); }
  Round round(int index) const {
    return {order_.data() + (index > 0 ? ends_[index - 1] : 0), order_.data() + ends_[index]};
  }
  // By any thread: until the round's experts are in memory, or could not be read.
  void wait(int round);
  // By one thread, when none reads the round's experts any more.
  void finish(int round);
  // Of a round that was waited for.
  const uint8_t* at(int group, int64_t expert) const {
    return memory_.data() + static_cast<size_t>(slots_of_[group][expert]) * slot_bytes_;
  }

  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  // Between ops: throws what a read has failed of, once, and forgets all that is in memory.
  void rethrow();

 private:
  struct Slot {
    int group = -1;
    int32_t expert = 0;
    bool used = false;                // in a round that is not finished
    int round = 0;                    // in which
    int parts = 0;                    // that are still to be read
    std::list<int32_t>::iterator at;  // in recent_
  };

  void read_more();
  int32_t free_slot();
  void done(int64_t slot, std::exception_ptr failure);

  const std::vector<Group> groups_;
  const PackedFile file_;
  size_t slot_bytes_ = 0;
  Memory memory_;
  std::vector<Slot> slots_;
  std::list<int32_t> recent_;                   // slots, the last used first
  std::vector<std::vector<int32_t>> slots_of_;  // by group and expert: the slot, or -1

  // Of the op.
  int group_ = 0;
  std::vector<int32_t> order_;  // experts, by round
  std::vector<size_t> ends_;    // by round: of its part of order_
  size_t next_ = 0;             // of order_, to be read
  std::vector<ReadThreads::Part> parts_;

  std::mutex mutex_;
  std::condition_variable read_;
  std::vector<int> missing_;  // by round: experts that are not read yet
  std::exception_ptr failure_;
  std::atomic<bool> failed_{false};
  ReadThreads threads_;  // last: ends before what it writes to goes
};

}  // namespace glmlite
