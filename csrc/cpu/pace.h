// How many threads of a team a run shall have, learned from what the runs before it got.
#pragma once

namespace glmlite {

// While others keep cores busy, a team waits at every barrier for members that the system has put aside, and fewer
// threads are faster. What counts is the cores' worth of work that a run got: time that its threads worked, without
// waiting at barriers, over time that it took. It does not depend on what the run computed.
//
// Runs are looked at in spans of time. Where spans in a row get much less than a core for each thread, fewer are tried,
// for one span; where they get what they ask for, more are. Trials that fail are repeated ever less often.
class Pace {
 public:
  explicit Pace(int most) : most_(most), size_(most), too_many_(most + 1) {}

  // Of the next run.
  int threads() const { return trial_ > 0 ? trial_ : size_; }
  // What a run of threads() threads took and worked, until `now`: in seconds.
  void ran(double now, double took, double worked);

 private:
  struct Span {
    double took = 0, worked = 0;
    double cores() const { return worked / took; }
  };
  // When something may be tried again.
  struct Patience {
    const double least;  // seconds
    double until = 0, wait = 0;
    void lost(double now);
    void reset() { wait = 0; }
  };

  void look(double now, const Span& span);
  void judge(double now, const Span& span);
  void wait_to_grow(double now);

  const int most_;
  int size_;
  int trial_ = 0;     // instead of size_, 0: none
  int too_many_;      // more than size_, and not worth it at the last trial
  Span span_;         // so far
  Span slow_;         // spans in a row in which size_ threads got little
  double cores_ = 0;  // that size_ threads got lately
  Patience grow_{0.1}, shrink_{0.5};
};

}  // namespace glmlite
