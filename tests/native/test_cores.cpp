// How many threads are worth starting, on trees of files like Linux's.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "check.h"
#include "cpu/cores.h"
#include "gguf_bytes.h"

using namespace glmlite;

namespace {

using Files = std::map<std::string, std::string>;

// Files below a root of their own.
class Tree {
 public:
  explicit Tree(const Files& files) {
    for (const auto& [name, text] : files) {
      const auto path = folder_.path / name;
      std::filesystem::create_directories(path.parent_path());
      std::ofstream(path) << text;
    }
  }
  std::string root() const { return folder_.path.string(); }

 private:
  Folder folder_;
};

Files cpus(int count, const std::function<Files(int)>& about) {
  Files files;
  for (int cpu = 0; cpu < count; ++cpu)
    for (const auto& [name, text] : about(cpu))
      files["sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/" + name] = text + "\n";
  return files;
}

std::vector<int> up_to(int count, int first = 0) {
  std::vector<int> list;
  for (int cpu = first; cpu < count; ++cpu) list.push_back(cpu);
  return list;
}

}  // namespace

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

TEST(threads_of_one_core_count_once) {
  const Tree tree(cpus(8, [](int cpu) -> Files {
    const std::string a = std::to_string(cpu % 4), b = std::to_string(cpu % 4 + 4);
    return {{"topology/thread_siblings_list", a + "," + b}};
  }));
  CHECK(fast_cores(tree.root(), up_to(8)) == 4);
  CHECK(fast_cores(tree.root(), {0, 4, 5}) == 2);
  CHECK(fast_cores(tree.root(), {}) == 0);
}

TEST(without_files_each_cpu_is_a_core) { CHECK(fast_cores(Tree({}).root(), up_to(5)) == 5); }

TEST(performance_cores_of_two_kinds_by_name) {
  // Eight with two threads each, then eight small ones whose clock is nearly as fast.
  Files files = cpus(24, [](int cpu) -> Files {
    const std::string two = std::to_string(cpu / 2 * 2) + "-" + std::to_string(cpu / 2 * 2 + 1);
    return {{"topology/thread_siblings_list", cpu < 16 ? two : std::to_string(cpu)},
            {"cpufreq/cpuinfo_max_freq", cpu < 16 ? "5200000" : "3900000"}};
  });
  files["sys/devices/cpu_core/cpus"] = "0-15\n";
  files["sys/devices/cpu_atom/cpus"] = "16-23\n";
  const Tree tree(files);
  CHECK(fast_cores(tree.root(), up_to(24)) == 8);
  CHECK(fast_cores(tree.root(), {0, 1, 2, 20}) == 2);
  CHECK(fast_cores(tree.root(), up_to(24, 18)) == 6);  // only small ones may be used
}

TEST(fast_cores_by_capacity_or_clock) {
  const struct {
    const char* what;
    std::vector<int> speeds;
    int fast;
  } cases[] = {
      {"cpu_capacity", {530, 530, 530, 530, 1024, 1024, 1024, 1024}, 4},
      {"cpu_capacity", {325, 325, 325, 790, 790, 790, 790, 1024}, 5},
      {"cpu_capacity", {1024, 1024, 1024, 1024}, 4},
      {"cpufreq/cpuinfo_max_freq", {5100000, 5100000, 3300000, 3300000}, 4},
      {"cpufreq/cpuinfo_max_freq", {3000000, 3000000, 1700000, 1700000}, 2},
      {"cpufreq/cpuinfo_max_freq", {3000000, 3000000, 0, 1700000}, 4},  // one does not tell: none is believed
  };
  for (const auto& c : cases) {
    const Tree tree(cpus(static_cast<int>(c.speeds.size()),
                         [&](int cpu) -> Files { return {{c.what, std::to_string(c.speeds[cpu])}}; }));
    CHECK(fast_cores(tree.root(), up_to(static_cast<int>(c.speeds.size()))) == c.fast);
  }
}

TEST(lists_of_cpus_that_make_no_sense) {
  for (const char* list : {"", "x", "0-", "-", "0-99999999999", "3-1", "0-2147483647", ",,", "0,,1"}) {
    Files files;
    files["sys/devices/cpu_core/cpus"] = list;
    const int cores = fast_cores(Tree(files).root(), up_to(4));
    CHECK(cores >= 1 && cores <= 4);
  }
}

TEST(quotas_of_control_groups) {
  const std::string v2 = "sys/fs/cgroup", v1 = "sys/fs/cgroup/cpu,cpuacct", own = "proc/self/cgroup";
  const struct {
    const char* what;
    Files files;
    double quota;
  } cases[] = {
      {"none", {}, 0},
      {"no limit", {{own, "0::/\n"}, {v2 + "/cpu.max", "max 100000\n"}}, 0},
      {"half", {{own, "0::/\n"}, {v2 + "/cpu.max", "50000 100000\n"}}, 0.5},
      {"its own", {{own, "0::/a/b\n"}, {v2 + "/a/b/cpu.max", "250000 100000"}}, 2.5},
      {"a parent's is less",
       {{own, "0::/a/b\n"}, {v2 + "/a/b/cpu.max", "400000 100000"}, {v2 + "/a/cpu.max", "150000 100000"}},
       1.5},
      {"a path from outside the container", {{own, "0::/docker/123\n"}, {v2 + "/cpu.max", "200000 100000"}}, 2},
      {"a sibling's", {{own, "0::/a\n"}, {v2 + "/b/cpu.max", "50000 100000"}}, 0},
      {"version 1",
       {{own, "5:memory:/a\n4:cpu,cpuacct:/a\n"},
        {v1 + "/a/cpu.cfs_quota_us", "300000\n"},
        {v1 + "/a/cpu.cfs_period_us", "100000\n"}},
       3},
      {"version 1, no limit",
       {{own, "4:cpu,cpuacct:/\n"}, {v1 + "/cpu.cfs_quota_us", "-1"}, {v1 + "/cpu.cfs_period_us", "100000"}},
       0},
      {"version 1, another controller",
       {{own, "4:cpuset:/\n"},
        {"sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "1"},
        {"sys/fs/cgroup/cpuset/cpu.cfs_period_us", "1"}},
       0},
      {"both",
       {{own, "1:cpu:/\n0::/\n"},
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000"},
        {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"},
        {"sys/fs/cgroup/unified/cpu.max", "350000 100000"}},
       3.5},
      {"nonsense", {{own, "0::/\n::\nx\n0::\n:\n"}, {v2 + "/cpu.max", "-5 0\n"}}, 0},
  };
  for (const auto& c : cases) {
    const double quota = cpu_quota(Tree(c.files).root());
    check(std::abs(quota - c.quota) < 1e-9, __FILE__, __LINE__, std::string(c.what) + ": " + std::to_string(quota));
  }
}

RUN_TESTS()
