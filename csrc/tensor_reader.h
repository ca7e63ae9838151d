// Reading of a file's tensors by a team of threads, with reports of progress on the way.
#pragma once
#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <mutex>

#include "cpu/team.h"
#include "executor.h"

namespace glmlite {

class TensorReader {
 public:
  // total: bytes that will be read.
  TensorReader(Team& team, uint64_t total, const LoadProgress& progress);

  // Calls work(thread) on every thread of the team. What one of them throws ends the others at their next `read`, and
  // is thrown here, the first of several.
  void run(const std::function<void(int)>& work);

  // Inside `run`: bytes [offset, offset + bytes) of a file, or [begin, begin + bytes) of a tensor. The caller of `run`,
  // thread 0, reports progress while it reads, at most every 20 ms. Throws FileError, Cancelled, and what `progress`
  // throws.
  void read(int thread, const File& file, uint64_t offset, uint64_t bytes, uint8_t* to);
  void read(int thread, const Tensor& t, uint64_t begin, uint64_t bytes, uint8_t* to) {
    if (!t.file) t.read(begin, bytes, to);  // which throws
    read(thread, *t.file, t.offset + begin, bytes, to);
  }

  // What has been read so far, to `progress`. Throws Cancelled, and what `progress` throws.
  void report();

 private:
  Team& team_;
  const uint64_t total_;
  const LoadProgress& progress_;
  std::atomic<uint64_t> done_{0};
  std::chrono::steady_clock::time_point reported_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace glmlite
