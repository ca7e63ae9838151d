#include "tensor_reader.h"

#include <algorithm>

#include "errors.h"

namespace glmlite {

namespace {

// A cancel is heard after so much at the latest, which a disk of 10 MB/s gives in 25 ms.
constexpr uint64_t kAtOnce = 256 << 10;
constexpr std::chrono::milliseconds kBetweenReports{20};

struct Ended {};  // another thread failed

}  // namespace

TensorReader::TensorReader(Team& team, uint64_t total, const LoadProgress& progress)
    : team_(team), total_(total), progress_(progress), reported_(std::chrono::steady_clock::now()) {}

void TensorReader::run(const std::function<void(int)>& work) {
  const auto guarded = [this](const auto& part) {
    try {
      part();
    } catch (const Ended&) {
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      failed_ = true;
    }
  };
  team_.run([&](int thread) { guarded([&] { work(thread); }); },
            [&] {
              if (!failed_.load(std::memory_order_relaxed)) guarded([&] { report(); });
            });
  if (failure_) std::rethrow_exception(failure_);
}

void TensorReader::read(int thread, const File& file, uint64_t offset, uint64_t bytes, uint8_t* to) {
  for (uint64_t at = 0; at < bytes; at += kAtOnce) {
    if (failed_.load(std::memory_order_relaxed)) throw Ended();
    const uint64_t count = std::min(kAtOnce, bytes - at);
    file.read(offset + at, count, to + at);
    done_.fetch_add(count, std::memory_order_relaxed);
    if (thread == 0 && team_.caller_works() && std::chrono::steady_clock::now() - reported_ >= kBetweenReports)
      report();
  }
}

void TensorReader::report() {
  if (progress_ && !progress_(done_.load(std::memory_order_relaxed), total_)) throw Cancelled("the load was cancelled");
  reported_ = std::chrono::steady_clock::now();
}

}  // namespace glmlite
