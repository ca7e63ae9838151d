// A team of threads that runs one function together and meets at barriers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "this_thread.h"

namespace glmlite {

// Memory that a thread will read next: it fetches it into its cache while it waits for others.
struct Ahead {
  const uint8_t* begin = nullptr;  // moves on to what is not fetched yet
  const uint8_t* end = nullptr;
};

// In a process forked from the one that made it, `run` and `resize` throw std::runtime_error: fork copies no threads.
// The caller of `run` is thread 0. Workers spin shortly after work, then sleep: an idle team burns no CPU.
// With Priority::kBackground thread 0 is a worker too, all of them have a low priority, and the caller sleeps: it may
// hold what others wait for, as Python's lock, and must not be put aside with it.
class Team {
 public:
  explicit Team(int threads, Priority priority = Priority::kNormal);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_; }
  // Those of them that take part in a run.
  int size() const { return size_; }
  bool caller_works() const { return first_ == 1; }

  // None of these during a run. Starts or ends threads, of which all take part then; if the system has no more to give:
  // std::system_error, and all is as before.
  void resize(int threads);
  // How many take part in the next run, 1 to threads().
  void take_part(int threads) { size_ = threads; }
  // Whether runs are measured.
  void measure(bool on) { measured_ = on; }
  // Of the last run, if measured: time on a core, of all threads together, that was not spent in long waits; in the
  // unit of core_ticks().
  int64_t worked() const { return worked_.load(std::memory_order_relaxed); }

  // Calls work(thread) on every thread that takes part and returns when all have returned. `work` must not throw. One
  // `run` at a time. meanwhile: called by a caller that does not work, every 20 ms; must not throw.
  void run(const std::function<void(int)>& work, const std::function<void()>& meanwhile = {});

  // Inside `run`: waits until every thread is here, then makes `take` start from 0 again.
  void barrier(Ahead* ahead = nullptr);

  // Inside `run`: the next of `count` tasks nobody has taken since the last barrier; false when there is none.
  bool take(int64_t count, int64_t* task) {
    *task = next_.fetch_add(1, std::memory_order_relaxed);
    return *task < count;
  }

  // Inside `run`: whether a thread has waited long since it began.
  bool waited() const { return waited_.load(std::memory_order_relaxed); }

 private:
  struct alignas(64) Worker {
    std::thread thread;
    std::condition_variable wake;
    std::atomic<bool> quit{false};
  };

  void check_process() const;
  void start(int thread);
  void end_last();
  void work_off(Worker& self, int thread, uint64_t seen);
  void do_part(int thread);
  template <class Done>
  int64_t spin_until(Done done, Ahead* ahead = nullptr);

  const int64_t process_;  // that made the team
  const Priority priority_;
  const int first_;  // thread that is a worker
  int threads_ = 0, size_ = 0;
  bool measured_ = false;
  std::deque<Worker> workers_;

  std::atomic<uint64_t> call_{0};  // counts runs, in the upper bits, and has the size of this one; workers wait for it
  std::atomic<int> running_{0};    // workers
  const std::function<void(int)>* work_ = nullptr;
  std::mutex mutex_;
  std::condition_variable done_;

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> worked_{0};
  std::atomic<bool> waited_{false};
};

}  // namespace glmlite
