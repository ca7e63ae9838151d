// How many threads the next run has, on machines that are told here: recorded ones and simple models of one.
#include <functional>
#include <vector>

#include "check.h"
#include "cpu/pace.h"

using namespace glmlite;

namespace {

// Cores' worth of work that a team of so many threads gets at a time.
using Machine = std::function<double(int threads, double now)>;

// n cores for nobody else, but what barriers cost.
Machine quiet(int cores) {
  return [cores](int threads, double) { return 0.95 * std::min(threads, cores); };
}
// Some of the cores have another thread each: a team with more threads than free cores waits for one that has half.
Machine partly(int cores, int free) {
  return [=](int threads, double) { return threads <= free ? 0.97 * threads : 0.5 * std::min(threads, cores); };
}

struct Simulated {
  explicit Simulated(int most) : pace(most) {}

  // Runs of so many seconds for some time; notes how much work was done, and with how many threads.
  void go(const Machine& machine, double seconds, double run = 0.004) {
    used.clear();
    work = 0;
    for (const double end = now + seconds; now < end; now += run) {
      const int threads = pace.threads();
      used.push_back(threads);
      work += machine(threads, now) * run;
      pace.ran(now + run, run, machine(threads, now) * run);
    }
  }
  int changes() const {
    int count = 0;
    for (size_t i = 1; i < used.size(); ++i) count += used[i] != used[i - 1];
    return count;
  }

  Pace pace;
  double now = 1000, work = 0;
  std::vector<int> used;
};

}  // namespace

TEST(a_quiet_machine_keeps_all_threads) {
  for (int cores : {2, 3, 8, 16, 64}) {
    Simulated s(cores);
    s.go(quiet(cores), 60);
    CHECK(s.pace.threads() == cores && s.changes() == 0);
  }
}

// Cores' worth of work in steps of SmolLM2 beside six busy processes on two cores, as measured.
TEST(six_busy_processes_on_two_cores) {
  const Machine busy = [](int threads, double) { return threads == 1 ? 0.29 : 0.15; };
  Simulated s(2);
  s.go(busy, 0.25);
  CHECK(s.pace.threads() == 1);
  s.go(busy, 120);
  CHECK(s.work >= 0.99 * 0.29 * 120 && s.changes() == 0);  // it got less than a core: another is not even tried
  s.go(quiet(2), 1.5);
  CHECK(s.pace.threads() == 2);
  s.go(quiet(2), 60);
  CHECK(s.changes() == 0);
}

TEST(one_busy_process_on_two_cores_gets_one_and_trials_become_rare) {
  Simulated s(2);
  s.go(partly(2, 1), 1);
  CHECK(s.pace.threads() == 1);
  s.go(partly(2, 1), 20);
  s.go(partly(2, 1), 80);
  CHECK(s.changes() <= 2 * 21);
  CHECK(s.work >= 0.99 * 0.97 * 80);
}

TEST(as_many_threads_as_cores_are_free) {
  for (int cores : {4, 8, 16}) {
    for (int free : {1, 2, 3, cores - 2, cores - 1}) {
      Simulated s(cores);
      s.go(partly(cores, free), 10);
      s.go(partly(cores, free), 60);
      // What more threads bring with a second one on their cores may be more than the free cores give.
      CHECK(s.work >= 0.9 * 60 * 0.97 * free);
      s.go(quiet(cores), 10);
      CHECK(s.pace.threads() == cores);
    }
  }
}

TEST(a_short_disturbance_changes_nothing) {
  Simulated s(4);
  const Machine machine = [](int threads, double now) {
    return (now - static_cast<int>(now) < 0.02 ? 0.3 : 0.95) * threads;
  };
  s.go(machine, 30);
  CHECK(s.changes() == 0);
}

// Fewer threads get no more: there is something else that the team waits for.
TEST(a_team_that_is_slow_by_itself_keeps_its_threads) {
  Simulated s(4);
  s.go([](int threads, double) { return 0.5 * threads; }, 100);
  CHECK(s.pace.threads() == 4 || s.used[s.used.size() - 50] == 4);
  CHECK(s.work >= 0.98 * 0.5 * 4 * 100);
}

TEST(no_flapping_where_others_come_and_go) {
  for (double period : {0.1, 0.3, 0.7, 2.0}) {
    Simulated s(2);
    const Machine machine = [&](int threads, double now) {
      const bool busy = now / period - static_cast<int64_t>(now / period) < 0.5;
      return busy ? partly(2, 1)(threads, now) : quiet(2)(threads, now);
    };
    s.go(machine, 120);
    CHECK(s.changes() <= 4 * 120 / period);
    CHECK(s.work >= 0.9 * 0.95 * 120);  // never less than one thread's, but for trials
  }
}

TEST(long_runs_and_a_single_thread) {
  Simulated s(2);
  s.go([](int threads, double) { return threads == 1 ? 0.3 : 0.1; }, 3, 0.5);
  CHECK(s.pace.threads() == 1);
  Simulated one(1);
  one.go([](int, double) { return 0.01; }, 10);
  CHECK(one.pace.threads() == 1 && one.changes() == 0);
}

RUN_TESTS()
