// How many threads are worth starting: what differs between the systems is here.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "team.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace glmlite {

namespace {

#if defined(__linux__)
// Cores among the CPUs that this process may run on: CPUs of one core name the same siblings.
int physical_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    cores.insert(std::getline(file, siblings) ? siblings : "cpu " + std::to_string(cpu));
  }
  return static_cast<int>(cores.size());
}

// CPUs' worth of time that a container's quota allows, rounded up; 0 for no quota.
int cpu_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  long period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return static_cast<int>((std::strtol(quota.c_str(), nullptr, 10) + period - 1) / period);
}
#elif defined(__APPLE__)
int sysctl_int(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}
int physical_cores() {
  const int fast = sysctl_int("hw.perflevel0.physicalcpu");  // performance cores, where there are two kinds
  return fast > 0 ? fast : sysctl_int("hw.physicalcpu");
}
int cpu_quota() { return 0; }
#elif defined(_WIN32)
int physical_cores() {
  DWORD bytes = 0;
  GetLogicalProcessorInformation(nullptr, &bytes);
  std::vector<SYSTEM_LOGICAL_PROCESSOR_INFORMATION> info(bytes / sizeof(SYSTEM_LOGICAL_PROCESSOR_INFORMATION));
  if (info.empty() || !GetLogicalProcessorInformation(info.data(), &bytes)) return 0;
  return static_cast<int>(
      std::count_if(info.begin(), info.end(), [](const auto& i) { return i.Relationship == RelationProcessorCore; }));
}
int cpu_quota() { return 0; }
#else
int physical_cores() { return 0; }
int cpu_quota() { return 0; }
#endif

}  // namespace

int default_threads() {
  if (const char* text = std::getenv("GLMLITE_THREADS"); text && *text) {
    char* end;
    const long threads = std::strtol(text, &end, 10);
    if (*end || threads < 1 || threads > 1024)
      throw std::invalid_argument("GLMLITE_THREADS=" + std::string(text) + ": expected a number of 1 to 1024");
    return static_cast<int>(threads);
  }
  int cores = physical_cores();
  if (cores <= 0) cores = static_cast<int>(std::thread::hardware_concurrency());
  if (const int quota = cpu_quota(); quota > 0) cores = std::min(cores, quota);
  return std::clamp(cores, 1, 1024);
}

}  // namespace glmlite
