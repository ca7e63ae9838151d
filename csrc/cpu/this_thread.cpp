#include "this_thread.h"

#if defined(_WIN32)
#include <windows.h>
#if defined(_M_X64) || defined(__x86_64__)
#include <intrin.h>
#endif
#else
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#elif defined(__APPLE__)
#include <pthread.h>
#include <sys/qos.h>
#endif
#endif

namespace glmlite {

#if defined(_WIN32)

int64_t this_process() { return 0; }

// Not THREAD_MODE_BACKGROUND_BEGIN, which has the system take the weights' memory first.
void lower_priority() {
  SetThreadPriority(GetCurrentThread(), THREAD_PRIORITY_LOWEST);
#ifdef THREAD_POWER_THROTTLING_CURRENT_VERSION
  THREAD_POWER_THROTTLING_STATE state{};
  state.Version = THREAD_POWER_THROTTLING_CURRENT_VERSION;
  state.ControlMask = state.StateMask = THREAD_POWER_THROTTLING_EXECUTION_SPEED;
  SetThreadInformation(GetCurrentThread(), ThreadPowerThrottling, &state, sizeof state);
#endif
}

// Times are told in steps of 15 ms, cycles exactly; on x86-64 they are those of the time stamp counter.
#if defined(_M_X64) || defined(__x86_64__)
int64_t clock_ticks() { return static_cast<int64_t>(__rdtsc()); }
int64_t core_ticks() {
  ULONG64 cycles = 0;
  return QueryThreadCycleTime(GetCurrentThread(), &cycles) ? static_cast<int64_t>(cycles) : 0;
}
#else
int64_t clock_ticks() { return 0; }
int64_t core_ticks() { return 0; }
#endif

#else

int64_t this_process() { return getpid(); }

// Not SCHED_IDLE, nor niceness 19: on a busy machine these get so little that a cancel would not be heard for seconds.
// Ten more than the process has is a tenth of an ordinary thread's share.
void lower_priority() {
#if defined(__linux__)
  sched_param none{};
  sched_setscheduler(0, SCHED_BATCH, &none);                        // it does not interrupt others when it wakes
  setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 10);  // of the thread, on Linux
#elif defined(__APPLE__)
  pthread_set_qos_class_self_np(QOS_CLASS_UTILITY, 0);
#endif
}

static int64_t nanoseconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

int64_t clock_ticks() { return nanoseconds(CLOCK_MONOTONIC); }
int64_t core_ticks() { return nanoseconds(CLOCK_THREAD_CPUTIME_ID); }

#endif

}  // namespace glmlite
