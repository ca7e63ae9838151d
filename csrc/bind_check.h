// What long work at the seam does on its way, so that other Python threads run and its caller can end it.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>

namespace glmlite {

class Check {
 public:
  // ask: called every 20 ms or so, what it raises ends the work; None: only signals do (Ctrl-C). Make it with the GIL.
  explicit Check(const pybind11::object& ask) : ask_(ask), asked_(Clock::now()), had_(asked_) {}

  // Between pieces of work of some microseconds that need the GIL: gives it up every 8 ms. Python's threads ask for it
  // when they have waited 5 ms, and then get it; to give it up more often would only start their waiting anew.
  void with_gil() {
    if (++count_ % 64 != 0 || Clock::now() - had_ < std::chrono::milliseconds(8)) return;
    { pybind11::gil_scoped_release release; }
    had_ = Clock::now();
    if (due()) ask();
  }

  // Between pieces of work without the GIL.
  void without_gil() {
    if (!due()) return;
    pybind11::gil_scoped_acquire gil;
    ask();
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool due() const { return Clock::now() - asked_ >= std::chrono::milliseconds(20); }
  void ask() {
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    if (!ask_.is_none()) ask_();
    asked_ = Clock::now();
  }

  const pybind11::object& ask_;
  Clock::time_point asked_, had_;
  unsigned count_ = 0;
};

}  // namespace glmlite
