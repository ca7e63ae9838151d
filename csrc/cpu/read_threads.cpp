#include "read_threads.h"

#include <utility>

#include "team.h"

namespace glmlite {

ReadThreads::ReadThreads(const File& file, int threads, Done done)
    : file_(file), done_(std::move(done)), process_(this_process()) {
  try {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (...) {  // the system has no more threads to give: end those we have
    end();
    throw;
  }
}

ReadThreads::~ReadThreads() {
  if (this_process() != process_) {  // nobody to join: the handles are left behind
    new std::vector<std::thread>(std::move(threads_));
    return;
  }
  end();
}

void ReadThreads::end() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ReadThreads::read(const std::vector<Part>& parts) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (next_ == parts_.size()) {
      parts_.clear();
      next_ = 0;
    }
    parts_.insert(parts_.end(), parts.begin(), parts.end());
  }
  wake_.notify_all();
}

void ReadThreads::work() {
  while (true) {
    Part part;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return quit_ || next_ < parts_.size(); });
      if (quit_) return;
      part = parts_[next_++];
    }
    std::exception_ptr failure;
    try {
      file_.read(part.offset, part.bytes, part.to);
    } catch (...) { failure = std::current_exception(); }
    done_(part.tag, failure);
  }
}

}  // namespace glmlite
