#include "pace.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace glmlite {

namespace {

constexpr double kSpan = 0.03;   // seconds: some turns of a scheduler's
constexpr double kSlow = 0.09;   // seconds in a row that threads may get
constexpr double kLittle = 0.6;  // of a core each
constexpr double kMostWait = 4;  // seconds between trials

// Whether n threads that got so many cores are worth it, where m < n got `fewer`. More threads also read memory more
// slowly each, so they have to bring two fifths of what they could.
bool worth(double cores, int n, double fewer, int m) { return cores >= fewer * (1 + 0.4 * (n - m) / m); }

}  // namespace

void Pace::Patience::lost(double now) {
  wait = std::clamp(2 * wait, least, kMostWait);
  until = now + wait;
}

void Pace::ran(double now, double took, double worked) {
  span_.took += took;
  span_.worked += worked;
  if (span_.took < kSpan) return;
  const Span span = std::exchange(span_, {});
  if (trial_ > 0) {
    judge(now, span);
  } else {
    look(now, span);
  }
}

void Pace::look(double now, const Span& span) {
  cores_ = cores_ > 0 ? (cores_ + span.cores()) / 2 : span.cores();
  if (span.cores() < kLittle * size_) {
    slow_.took += span.took;
    slow_.worked += span.worked;
    if (size_ > 1 && slow_.took >= kSlow && now >= shrink_.until)
      trial_ = std::clamp(static_cast<int>(std::lround(slow_.cores())), 1, size_ - 1);
    return;
  }
  slow_ = {};
  if (now >= shrink_.until) shrink_.reset();
  if (size_ == most_) {
    if (now >= grow_.until) grow_.reset();
  } else if (cores_ >= kLittle * size_ && now >= grow_.until) {
    trial_ = (size_ + too_many_) / 2;
  }
}

void Pace::judge(double now, const Span& span) {
  const int trial = std::exchange(trial_, 0);
  if (trial < size_) {
    if (worth(slow_.cores(), size_, span.cores(), trial)) {
      shrink_.lost(now);
    } else {
      size_ = trial;
      cores_ = span.cores();
      wait_to_grow(now);
    }
    slow_ = {};
    return;
  }
  if (worth(span.cores(), trial, cores_, size_)) {
    size_ = trial;
    cores_ = span.cores();
  } else {
    too_many_ = trial;
  }
  if (size_ + 1 >= too_many_ || size_ == most_) wait_to_grow(now);
}

void Pace::wait_to_grow(double now) {
  too_many_ = most_ + 1;
  grow_.lost(now);
}

}  // namespace glmlite
