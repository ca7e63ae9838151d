// The thread team: that work is done once, barriers hold, and no access races (under ThreadSanitizer).
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/team.h"
#include "cpu/this_thread.h"

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

// Parts of a run, of which each is done once by another thread, with a barrier between; the sum of the threads.
static int parts(Team& team) {
  std::vector<int> seen(team.size(), 0);
  std::vector<std::thread::id> who(team.size());
  std::atomic<int> sum{0};
  team.run([&](int thread) {
    ++seen[thread];
    who[thread] = std::this_thread::get_id();
    team.barrier();
    for (int count : seen) sum += count;
  });
  for (int i = 0; i < team.size(); ++i) {
    CHECK(seen[i] == 1);
    CHECK((who[i] == std::this_thread::get_id()) == (i == 0 && team.caller_works()));
    for (int j = 0; j < i; ++j) CHECK(who[i] != who[j]);
  }
  return sum;
}

TEST(the_number_of_threads_changes_between_runs) {
  for (const Priority priority : {Priority::kNormal, Priority::kBackground}) {
    Team team(2, priority);
    for (const int threads : {2, 1, 5, 3, 3, 8, 1, 2}) {
      team.resize(threads);
      CHECK(team.threads() == threads && team.size() == threads);
      CHECK(parts(team) == threads * threads);
      for (int some = 1; some <= threads; ++some) {
        team.take_part(some);
        for (int round = 0; round < 20; ++round) CHECK(parts(team) == some * some);
        CHECK(team.threads() == threads);
      }
    }
  }
}

TEST(those_who_take_no_part_sleep_and_come_back) {
  Team team(4);
  for (int i = 0; i < 200; ++i) {
    team.take_part(1 + i % 4);
    if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK(parts(team) == (1 + i % 4) * (1 + i % 4));
  }
}

TEST(a_caller_that_does_not_work_is_called_meanwhile) {
  Team team(2, Priority::kBackground);
  CHECK(!team.caller_works());
  int calls = 0;
  std::atomic<bool> go{false};
  team.run(
      [&](int) {
        while (!go) std::this_thread::yield();
      },
      [&] { go = ++calls == 3; });
  CHECK(calls == 3);
}

TEST(what_a_run_worked) {
  Team team(2);
  if (core_ticks() == 0) return;  // this system does not tell
  const auto work = [](int64_t ticks) {
    for (const int64_t end = core_ticks() + ticks; core_ticks() < end;) {}
  };
  const int64_t begin = core_ticks();
  work(1);
  const int64_t before = clock_ticks();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const int64_t ticks = clock_ticks() - before;  // of 20 ms
  CHECK(core_ticks() > begin);
  team.run([&](int) { work(ticks); });
  CHECK(team.worked() == 0);
  team.measure(true);
  team.run([&](int) { work(ticks); });
  CHECK(team.worked() >= 2 * ticks);
  // One waits for the other at the barrier, and that does not count.
  int64_t worked = 0;
  team.run([&](int thread) {
    for (; thread == 1 && !team.waited(); worked += ticks) work(ticks);
    if (thread == 1) work(4 * ticks);
    team.barrier();
  });
  worked += 4 * ticks;
  CHECK(team.waited());
  CHECK(team.worked() >= worked && team.worked() < worked + 2 * ticks);
}

RUN_TESTS()
