// What differs between the systems is here.
#include "cores.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace glmlite {

namespace {

// The first words of a file, 0 or "" where there are none.
template <class... Words>
void read_words(const std::string& path, Words&... words) {
  std::ifstream file(path);
  (file >> ... >> words);
}

// CPUs of a list as "0-3,8"; empty where there is no such file.
std::set<int> cpu_list(const std::string& path) {
  std::set<int> cpus;
  std::ifstream file(path);
  for (int first, last; file >> first; file.get()) {
    last = first;
    if (file.peek() == '-') file.get() && file >> last;
    for (int cpu = first; cpu <= std::min(last, first + 4095); ++cpu) cpus.insert(cpu);
  }
  return cpus;
}

}  // namespace

int fast_cores(const std::string& root, const std::vector<int>& cpus) {
  constexpr double kFast = 0.6;
  const auto about = [&](int cpu, const char* what) {
    return root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/" + what;
  };
  // Intel's two kinds of core are told apart by name: their clocks say little of their speeds.
  const std::set<int> performance = cpu_list(root + "/sys/devices/cpu_core/cpus");
  std::vector<int> considered;
  std::copy_if(cpus.begin(), cpus.end(), std::back_inserter(considered),
               [&](int cpu) { return performance.count(cpu); });
  if (considered.empty()) considered = cpus;

  std::vector<double> speeds;
  for (const char* what : {"cpu_capacity", "cpufreq/cpuinfo_max_freq"}) {
    speeds.assign(considered.size(), 0);
    for (size_t i = 0; i < considered.size(); ++i) read_words(about(considered[i], what), speeds[i]);
    if (std::all_of(speeds.begin(), speeds.end(), [](double speed) { return speed > 0; })) break;
    speeds.assign(considered.size(), 1);
  }
  const double fastest = speeds.empty() ? 0 : *std::max_element(speeds.begin(), speeds.end());
  std::set<std::string> cores;  // CPUs of one core name the same siblings
  for (size_t i = 0; i < considered.size(); ++i) {
    if (speeds[i] < kFast * fastest) continue;
    std::string siblings;
    read_words(about(considered[i], "topology/thread_siblings_list"), siblings);
    cores.insert(siblings.empty() ? "cpu " + std::to_string(considered[i]) : siblings);
  }
  return static_cast<int>(cores.size());
}

double cpu_quota(const std::string& root) {
  double least = 0;
  const auto limit = [&](double quota, double period) {
    if (quota > 0 && period > 0) least = least > 0 ? std::min(least, quota / period) : quota / period;
  };
  // Version 2 has one file, "max 100000" or "50000 100000"; version 1 has two, and a quota of -1.
  const auto look = [&](const std::string& folder, bool second) {
    double quota = 0, period = 0;
    if (second) {
      read_words(folder + "/cpu.max", quota, period);
    } else {
      read_words(folder + "/cpu.cfs_quota_us", quota);
      read_words(folder + "/cpu.cfs_period_us", period);
    }
    limit(quota, period);
  };
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // number:controllers:path
    const size_t first = line.find(':'), colon = first == std::string::npos ? first : line.find(':', first + 1);
    if (colon == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, colon - first - 1);
    const std::string path = line.substr(colon + 1) + "/";
    const bool second = controllers.empty();
    if (!second && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    // Each group on the way is bound by those above it. In a container its own is at the root, whatever the path says.
    for (size_t end = path.find('/'); end != std::string::npos; end = path.find('/', end + 1)) {
      const std::string group = path.substr(0, end);
      for (const std::string& base : {std::string(), second ? "/unified" : "/" + controllers})
        if (second || !base.empty()) look(root + "/sys/fs/cgroup" + base + group, second);
    }
  }
  return least;
}

namespace {

#if defined(__linux__)
int physical_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return fast_cores("", cpus);
}
double quota() { return cpu_quota(""); }
#elif defined(__APPLE__)
int sysctl_int(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}
int physical_cores() {
  const int fast = sysctl_int("hw.perflevel0.physicalcpu");  // where there are two kinds
  return fast > 0 ? fast : sysctl_int("hw.physicalcpu");
}
double quota() { return 0; }
#elif defined(_WIN32)
// Those of the highest efficiency class, which is the fastest.
int physical_cores() {
  DWORD bytes = 0;
  GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
  std::vector<unsigned char> buffer(bytes);
  const auto at = [&](DWORD offset) {
    return reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data() + offset);
  };
  if (buffer.empty() || !GetLogicalProcessorInformationEx(RelationProcessorCore, at(0), &bytes)) return 0;
  DWORD_PTR allowed = 0, all = 0;  // bits of one group of processors
  const bool one_group = GetActiveProcessorGroupCount() == 1 &&
                         GetProcessAffinityMask(GetCurrentProcess(), &allowed, &all) && allowed != 0;
  std::map<int, int> cores;  // by class
  for (DWORD offset = 0; offset < bytes; offset += at(offset)->Size) {
    const PROCESSOR_RELATIONSHIP& core = at(offset)->Processor;
    const BYTE efficiency_class = reinterpret_cast<const BYTE*>(&core)[1];  // MinGW's headers do not name it
    if (!one_group || (core.GroupMask[0].Mask & allowed)) ++cores[efficiency_class];
  }
  return cores.empty() ? 0 : cores.rbegin()->second;
}
// Of a job, as a container is one.
double quota() {
  JOBOBJECT_CPU_RATE_CONTROL_INFORMATION rate{};
  constexpr DWORD kCapped = JOB_OBJECT_CPU_RATE_CONTROL_ENABLE | JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP;
  if (!QueryInformationJobObject(nullptr, JobObjectCpuRateControlInformation, &rate, sizeof rate, nullptr)) return 0;
  if ((rate.ControlFlags & kCapped) != kCapped) return 0;
  return rate.CpuRate / 10000.0 * GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
}
#else
int physical_cores() { return 0; }
double quota() { return 0; }
#endif

}  // namespace

int default_threads() {
  if (const char* text = std::getenv("GLMLITE_THREADS"); text && *text) {
    char* end;
    const long threads = std::strtol(text, &end, 10);
    if (*end || threads < 1 || threads > kMostThreads)
      throw std::invalid_argument("GLMLITE_THREADS=" + std::string(text) + ": expected a number of 1 to 1024");
    return static_cast<int>(threads);
  }
  double cores = physical_cores();
  if (cores <= 0) cores = std::thread::hardware_concurrency();
  if (const double time = quota(); time > 0) cores = std::min(cores, std::ceil(time));
  return static_cast<int>(std::clamp<double>(cores, 1, kMostThreads));
}

}  // namespace glmlite
