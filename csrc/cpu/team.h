// A fixed team of threads that runs one function together and meets at barriers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace glmlite {

// Memory that a thread will read next: it fetches it into its cache while it waits for others.
struct Ahead {
  const uint8_t* begin = nullptr;  // moves on to what is not fetched yet
  const uint8_t* end = nullptr;
};

// The caller of `run` is thread 0. Workers spin shortly after work, then sleep: an idle team burns no CPU.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls work(thread) on every thread and returns when all have returned. `work` must not throw. One `run` at a time.
  // Throws std::runtime_error in a process forked from the one that made the team: fork copies no threads.
  void run(const std::function<void(int)>& work);

  // Inside `run`: waits until every thread is here, then makes `take` start from 0 again.
  void barrier(Ahead* ahead = nullptr);

  // Inside `run`: the next of `count` tasks nobody has taken since the last barrier; false when there is none.
  bool take(int64_t count, int64_t* task) {
    *task = next_.fetch_add(1, std::memory_order_relaxed);
    return *task < count;
  }

 private:
  void worker(int thread);

  const int size_;
  const int64_t process_;  // that made the team
  std::vector<std::thread> threads_;

  std::atomic<uint64_t> generation_{0};  // of `run`: workers wait for it to change
  std::atomic<int> running_{0};
  std::atomic<bool> quit_{false};
  const std::function<void(int)>* work_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int64_t> next_{0};
};

// The number of this process, by which a fork of it is told; 0 where there are none.
int64_t this_process();

// Threads that are worth starting: the physical cores that this process may use, one per core, within its CPU quota.
// $GLMLITE_THREADS overrides; a value that is not a number of 1 to 1024 throws std::invalid_argument.
int default_threads();

}  // namespace glmlite
