// The thread team: that work is done once, barriers hold, and no access races (under ThreadSanitizer).
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "check.h"
#include "cpu/team.h"

using namespace glmlite;

TEST(every_thread_runs_once) {
  for (int threads : {1, 2, 3, 8}) {
    Team team(threads);
    CHECK(team.size() == threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<int> seen(threads, 0);
      team.run([&](int thread) { ++seen[thread]; });
      for (int count : seen) CHECK(count == 1);
    }
  }
}

TEST(what_is_written_before_a_barrier_is_read_after_it) {
  constexpr int kThreads = 4, kRounds = 500;
  Team team(kThreads);
  std::vector<int> values(kThreads, 0);
  std::vector<int> wrong(kThreads, 0);
  team.run([&](int thread) {
    for (int round = 1; round <= kRounds; ++round) {
      values[thread] = round;
      team.barrier();
      for (int value : values) wrong[thread] += value != round;
      team.barrier();
    }
  });
  for (int count : wrong) CHECK(count == 0);
}

TEST(each_task_is_taken_once_and_a_barrier_starts_anew) {
  Team team(3);
  std::vector<int> taken(1000, 0);
  team.run([&](int) {
    int64_t task;
    for (int round = 0; round < 5; ++round) {
      while (team.take(1000, &task)) ++taken[task];
      team.barrier();
    }
  });
  for (int count : taken) CHECK(count == 5);
}

TEST(a_team_sleeps_and_wakes) {
  Team team(2);
  std::atomic<int> calls{0};
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    team.run([&](int) { ++calls; });
  }
  CHECK(calls == 10);
}

TEST(threads_from_the_environment) {
#ifndef _WIN32
  setenv("GLMLITE_THREADS", "3", 1);
  CHECK(default_threads() == 3);
  for (const char* bad : {"0", "-1", "two", "3x", "2000"}) {
    setenv("GLMLITE_THREADS", bad, 1);
    CHECK_THROWS(std::invalid_argument, "expected a number of 1 to 1024", default_threads());
  }
  unsetenv("GLMLITE_THREADS");
#endif
  CHECK(default_threads() >= 1);
}

RUN_TESTS()
