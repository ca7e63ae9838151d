// Stacks that take turns on one thread of the system: x86-64 and arm64, not Windows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace glmlite::cuda_host {

// One stack, reused for one function after another.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*entry)(void*), void* argument);  // the next resume() calls entry(argument)
  void resume();                                     // runs until it yields or entry returns
  static void yield();                               // back to whoever resumed
  bool done() const { return done_; }

 private:
  static void enter();
  static constexpr size_t kStackBytes = 256 << 10;
  uint8_t* stack_;
  void* context_ = nullptr;  // its stack pointer while it waits
  void* resumer_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool done_ = true;
};

}  // namespace glmlite::cuda_host
