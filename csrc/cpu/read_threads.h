// Threads that read parts of a file at once: a disk gives most where much is asked of it at a time.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "../file.h"

namespace glmlite {

constexpr int kReadThreads = 8;
constexpr uint64_t kReadBytes = 1 << 20;  // that a thread reads at a time

class ReadThreads {
 public:
  struct Part {
    uint64_t offset, bytes;
    uint8_t* to;
    int64_t tag;
  };
  // Called by the thread that has read a part, or failed to.
  using Done = std::function<void(int64_t tag, std::exception_ptr failure)>;

  ReadThreads(const File& file, int threads, Done done);
  // Ends after what is being read; what still waits is not read.
  ~ReadThreads();
  ReadThreads(const ReadThreads&) = delete;
  ReadThreads& operator=(const ReadThreads&) = delete;

  // Allocates nothing while at most as many parts as were reserved are asked for before all have been read.
  void read(const std::vector<Part>& parts);
  void reserve(size_t parts) { parts_.reserve(parts); }

 private:
  void work();
  void end();

  const File& file_;
  const Done done_;
  const int64_t process_;  // that started them
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Part> parts_;
  size_t next_ = 0;  // of parts_
  bool quit_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace glmlite
