// How many threads are worth starting.
#pragma once
#include <string>
#include <vector>

namespace glmlite {

constexpr int kMostThreads = 1024;

// One thread for each physical core that this process may use, within its CPU quota. Where cores differ, only the fast
// ones count: a team waits at every barrier for its slowest member.
// $GLMLITE_THREADS overrides; a value that is not a number of 1 to 1024 throws std::invalid_argument.
int default_threads();

// What Linux tells in files, whose names have `root` before them: "" for this machine's.
// Physical cores among these CPUs, without those below three fifths of the speed of the fastest.
int fast_cores(const std::string& root, const std::vector<int>& cpus);
// CPUs' worth of time that the control groups of this process allow it, the least of all; 0: any.
double cpu_quota(const std::string& root);

}  // namespace glmlite
