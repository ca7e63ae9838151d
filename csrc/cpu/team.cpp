#include "team.h"

#include <chrono>
#include <stdexcept>

#include "inline.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace glmlite {

namespace {

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  __asm__ volatile("yield");
#endif
}

// Long enough for the gap between two steps, short enough not to heat an idle laptop: some 50 microseconds.
constexpr int kSpins = 2000;
constexpr int kSizeBits = 16;
constexpr std::chrono::milliseconds kMeanwhile{20};

}  // namespace

Team::Team(int threads, Priority priority)
    : process_(this_process()), priority_(priority), first_(priority == Priority::kBackground ? 0 : 1) {
  threads_ = first_;  // those that need no worker
  resize(threads);
}

Team::~Team() {
  if (this_process() != process_) {  // nobody to join: the handles are left behind
    new std::deque<Worker>(std::move(workers_));
    return;
  }
  while (!workers_.empty()) end_last();
}

void Team::check_process() const {
  if (this_process() != process_)
    throw std::runtime_error("this process was forked from the one that loaded the model; load it here again");
}

void Team::resize(int threads) {
  check_process();
  const int before = threads_;
  while (threads_ > threads) {
    end_last();
    --threads_;
  }
  try {
    for (; threads_ < threads; ++threads_) start(threads_);
  } catch (...) {
    for (; threads_ > before; --threads_) end_last();
    throw;
  }
  size_ = threads_;
}

void Team::start(int thread) {
  Worker& worker = workers_.emplace_back();
  try {
    const uint64_t seen = call_.load(std::memory_order_relaxed);
    worker.thread = std::thread([this, &worker, thread, seen] { work_off(worker, thread, seen); });
  } catch (...) {
    workers_.pop_back();
    throw;
  }
}

void Team::end_last() {
  Worker& worker = workers_.back();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    worker.quit = true;
    worker.wake.notify_one();
  }
  worker.thread.join();
  workers_.pop_back();
}

// Spins for `done`, then gives the core to whoever needs it (there may be more threads than cores). Returns what that
// took of a core, if it is measured.
template <class Done>
int64_t Team::spin_until(Done done, Ahead* ahead) {
  while (ahead && ahead->begin < ahead->end && !done()) {
    GLMLITE_PREFETCH(ahead->begin);
    ahead->begin += 64;
  }
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return 0;
    pause();
  }
  waited_.store(true, std::memory_order_relaxed);
  const int64_t begin = measured_ ? core_ticks() : 0;
  while (!done()) std::this_thread::yield();
  return measured_ ? core_ticks() - begin : 0;
}

void Team::do_part(int thread) {
  const int64_t begin = measured_ ? core_ticks() : 0;
  (*work_)(thread);
  if (measured_) worked_.fetch_add(core_ticks() - begin, std::memory_order_relaxed);
}

void Team::run(const std::function<void(int)>& work, const std::function<void()>& meanwhile) {
  check_process();
  next_.store(0, std::memory_order_relaxed);
  worked_.store(0, std::memory_order_relaxed);
  waited_.store(false, std::memory_order_relaxed);
  work_ = &work;
  const int workers = size_ - first_;
  if (workers > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    running_.store(workers, std::memory_order_relaxed);
    const uint64_t runs = (call_.load(std::memory_order_relaxed) >> kSizeBits) + 1;
    call_.store(runs << kSizeBits | static_cast<uint64_t>(size_), std::memory_order_release);
    for (int i = 0; i < workers; ++i) workers_[static_cast<size_t>(i)].wake.notify_one();
  }
  const auto done = [this] { return running_.load(std::memory_order_acquire) == 0; };
  if (caller_works()) {
    do_part(0);
    spin_until(done);
    return;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  if (!meanwhile) return done_.wait(lock, done);
  while (!done_.wait_for(lock, kMeanwhile, done)) {
    lock.unlock();
    meanwhile();
    lock.lock();
  }
}

void Team::work_off(Worker& self, int thread, uint64_t seen) {
  if (priority_ == Priority::kBackground) lower_priority();
  const auto called = [&] {
    const uint64_t call = call_.load(std::memory_order_acquire);
    return self.quit.load(std::memory_order_relaxed) ||
           (call != seen && thread < static_cast<int>(call & ((1u << kSizeBits) - 1)));
  };
  while (true) {
    for (int i = 0; i < kSpins && !called(); ++i) pause();
    if (!called()) {
      std::unique_lock<std::mutex> lock(mutex_);
      self.wake.wait(lock, called);
    }
    if (self.quit.load(std::memory_order_relaxed)) return;
    seen = call_.load(std::memory_order_acquire);
    do_part(thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1 && !caller_works()) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

void Team::barrier(Ahead* ahead) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    next_.store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    const int64_t waited = spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; }, ahead);
    if (waited > 0) worked_.fetch_sub(waited, std::memory_order_relaxed);
  }
}

}  // namespace glmlite
