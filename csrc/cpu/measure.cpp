#include "measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../memory.h"
#include "inline.h"
#include "kernels.h"
#include "read_threads.h"
#include "team.h"

namespace glmlite {

namespace {

int checked(int threads) {
  if (threads < 1 || threads > 1024)
    throw std::invalid_argument("threads: " + std::to_string(threads) + ", expected 1 to 1024");
  return threads;
}

// Best of `passes` timings of work(thread) on all threads, in seconds.
template <class Work>
double best_seconds(Team& team, int passes, Work work) {
  double best = 1e30;
  for (int pass = 0; pass < passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    team.run(work);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count());
  }
  return best;
}

// 1e9 operations a second of one of a kernel set's loops on registers.
double peak(int threads, int64_t (*some_rounds)(int64_t rounds, int32_t* result)) {
  Team team(checked(threads));
  constexpr int64_t kRounds = 2'000'000;
  std::atomic<int64_t> operations{0};
  std::atomic<int32_t> sink{0};
  constexpr int kPasses = 6;
  const double seconds = best_seconds(team, kPasses, [&](int) {
    int32_t result = 0;
    operations.fetch_add(some_rounds(kRounds, &result), std::memory_order_relaxed);
    sink.fetch_xor(result, std::memory_order_relaxed);
  });
  return static_cast<double>(operations.load()) / kPasses / seconds / 1e9;
}

}  // namespace

// With prefetches as far ahead as the kernels' own: plain loads alone leave a fifth of a thread's bandwidth unused.
double machine_bandwidth(int threads) {
  constexpr size_t kAheadBytes = 4096;
  Team team(checked(threads));
  constexpr size_t kBytes = size_t{512} << 20;
  const Memory memory(kBytes, "measuring the bandwidth");
  const size_t part = kBytes / static_cast<size_t>(team.size()) / 64 * 64;
  team.run([&](int thread) { std::memset(memory.data() + part * thread, 1, part); });
  std::atomic<uint64_t> sink{0};  // so that the reads are not optimised away
  const double seconds = best_seconds(team, 8, [&](int thread) {
    const uint64_t* p = memory.as<const uint64_t>(part * thread);
    uint64_t sum[8] = {};
    for (size_t i = 0; i < part / 8; i += 8) {
      GLMLITE_PREFETCH(p + i + kAheadBytes / 8);
      for (int j = 0; j < 8; ++j) sum[j] ^= p[i + j];
    }
    for (uint64_t s : sum) sink.fetch_xor(s, std::memory_order_relaxed);
  });
  return static_cast<double>(part) * team.size() / seconds / 1e9;
}

double machine_int8_peak(int threads, const char* isa) { return peak(threads, cpu_kernels(isa).dot_rounds); }

double machine_f32_peak(int threads, const char* isa) { return peak(threads, cpu_kernels(isa).fma_rounds); }

double machine_clock() {
  constexpr int kRounds = 1'000'000, kChain = 16, kCycles = 3;
  double best = 1e30;
  std::atomic<uint64_t> x{3};
  for (int pass = 0; pass < 5; ++pass) {
    uint64_t factor = x.load(), product = factor;
    const auto start = std::chrono::steady_clock::now();
    for (int round = 0; round < kRounds; ++round) {
      for (int i = 0; i < kChain; ++i) {
        product *= factor;
        GLMLITE_PIN(product);
      }
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    x.store(product | 1);
    best = std::min(best, elapsed.count());
  }
  return double{kRounds} * kChain * kCycles / best / 1e9;
}

double read_speed(const std::string& path, double seconds) {
  constexpr uint64_t kParts = 64;
  const File file(path, File::Reads::kDirect);
  const uint64_t step = file.size() / kParts / File::kDirectUnit * File::kDirectUnit,
                 bytes = std::min(step, kReadBytes);
  if (bytes == 0) return 0;
  const Memory memory(static_cast<size_t>(bytes * kParts), "measuring the disk");
  std::vector<ReadThreads::Part> parts;
  for (uint64_t i = 0; i < kParts; ++i) parts.push_back({i * step, bytes, memory.data() + i * bytes, 0});
  std::mutex mutex;
  std::condition_variable all;
  uint64_t done = 0;
  std::exception_ptr failed;
  const auto start = std::chrono::steady_clock::now();
  ReadThreads threads(file, kReadThreads, [&](int64_t, std::exception_ptr failure) {
    std::lock_guard<std::mutex> lock(mutex);
    if (failure) failed = std::move(failure);
    if (++done == kParts || failed) all.notify_all();
  });
  threads.read(parts);
  std::unique_lock<std::mutex> lock(mutex);
  all.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return done == kParts || failed; });
  if (failed) std::rethrow_exception(failed);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return static_cast<double>(done * bytes) / elapsed.count();
}

}  // namespace glmlite
