#include "team.h"

#include <stdexcept>

#include "inline.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#ifndef _WIN32
#include <unistd.h>
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

// Spins for `done`, then gives the core to whoever needs it (there may be more threads than cores).
template <class Done>
void spin_until(Done done, Ahead* ahead = nullptr) {
  while (ahead && ahead->begin < ahead->end && !done()) {
    GLMLITE_PREFETCH(ahead->begin);
    ahead->begin += 64;
  }
  for (int i = 0; !done(); ++i) {
    if (i < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
}

}  // namespace

int64_t this_process() {
#ifdef _WIN32
  return 0;
#else
  return getpid();
#endif
}

Team::Team(int threads) : size_(threads), process_(this_process()) {
  try {
    for (int i = 1; i < size_; ++i) threads_.emplace_back([this, i] { worker(i); });
  } catch (...) {  // the system has no more threads to give: end those we have
    {
      std::lock_guard<std::mutex> lock(mutex_);
      quit_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
    throw;
  }
}

Team::~Team() {
  if (this_process() != process_) {  // nobody to join: the handles are left behind
    new std::vector<std::thread>(std::move(threads_));
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& work) {
  if (this_process() != process_)
    throw std::runtime_error("this process was forked from the one that loaded the model; load it here again");
  next_.store(0, std::memory_order_relaxed);
  if (size_ > 1) {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    running_.store(size_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    wake_.notify_all();
  }
  work(0);
  spin_until([this] { return running_.load(std::memory_order_acquire) == 0; });
}

void Team::worker(int thread) {
  uint64_t seen = 0;
  while (true) {
    const auto called = [&] {
      return quit_.load(std::memory_order_relaxed) || generation_.load(std::memory_order_acquire) != seen;
    };
    for (int i = 0; i < kSpins && !called(); ++i) pause();
    if (!called()) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, called);
    }
    if (quit_.load(std::memory_order_relaxed)) return;
    seen = generation_.load(std::memory_order_acquire);
    (*work_)(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void Team::barrier(Ahead* ahead) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    next_.store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; }, ahead);
  }
}

}  // namespace glmlite
