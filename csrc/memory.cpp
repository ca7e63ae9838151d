#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <utility>

#ifdef _WIN32
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif
#ifdef __APPLE__
#include <mach/mach.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace glmlite {

OutOfMemory::OutOfMemory(const std::string& what, size_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, ": %.2f GB of memory could not be had", static_cast<double>(bytes) / 1e9);
  message_ = what + text;
}

Memory::Memory(size_t bytes, const std::string& what) {
  if (bytes == 0) return;
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool large = bytes >= kHugePage;
  const size_t extra = large ? kHugePage : 0;
  if (bytes > SIZE_MAX - extra) throw OutOfMemory(what, bytes);
  mapped_size_ = bytes + extra;
#ifdef _WIN32
  mapped_ = VirtualAlloc(nullptr, mapped_size_, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (!mapped_) throw OutOfMemory(what, bytes);
#else
  mapped_ = mmap(nullptr, mapped_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) {
    mapped_ = nullptr;
    throw OutOfMemory(what, bytes);
  }
#endif
  auto address = reinterpret_cast<uintptr_t>(mapped_);
  if (large) address = (address + kHugePage - 1) / kHugePage * kHugePage;
  data_ = reinterpret_cast<uint8_t*>(address);
  size_ = bytes;
#ifdef __linux__
  if (large) madvise(data_, size_, MADV_HUGEPAGE);  // only a wish: without it the memory is slower, not wrong
#endif
}

void Memory::reset() {
  if (mapped_) {
#ifdef _WIN32
    VirtualFree(mapped_, 0, MEM_RELEASE);
#else
    munmap(mapped_, mapped_size_);
#endif
  }
  data_ = nullptr;
  mapped_ = nullptr;
  size_ = mapped_size_ = 0;
}

void Memory::swap(Memory& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  std::swap(mapped_size_, other.mapped_size_);
}

void trim_heap() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

#ifdef __linux__
static size_t number_in(const std::string& path) {
  std::ifstream file(path);
  size_t value;
  return file >> value ? value : SIZE_MAX;  // cgroup writes "max" where there is no limit
}

// The number in the line that begins with `key`, or `missing`.
static size_t number_of(const std::string& path, const std::string& key, size_t missing) {
  std::ifstream file(path);
  std::string name, rest;
  for (size_t value; file >> name >> value; std::getline(file, rest))
    if (name == key) return value;
  return missing;
}

// What a control group leaves of its limit. What is cached of files counts as used, but is given up before anything
// fails.
static size_t left_by(const std::string& folder, const char* limit_name, const char* used_name, const char* total) {
  const size_t limit = number_in(folder + limit_name), current = number_in(folder + used_name);
  if (limit == SIZE_MAX || current == SIZE_MAX) return SIZE_MAX;
  const std::string stat = folder + "memory.stat", prefix = total;
  const size_t cached = number_of(stat, prefix + "inactive_file", 0) + number_of(stat, prefix + "active_file", 0);
  const size_t used = current - std::min(current, cached);
  return limit > used ? limit - used : 0;
}

// The least that is left by a group that this process is in, or one around it: of version 2, "0::/path", or of version
// 1, "4:memory:/path".
static size_t left_by_groups() {
  std::ifstream groups("/proc/self/cgroup");
  size_t least = SIZE_MAX;
  for (std::string line; std::getline(groups, line);) {
    const size_t colon = line.find(':'), second = line.find(':', colon + 1);
    if (colon == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(colon + 1, second - colon - 1);
    if (!controllers.empty() && controllers != "memory") continue;
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    while (true) {  // "/a/b", "/a", ""
      least = std::min(least, controllers.empty()
                                  ? left_by("/sys/fs/cgroup" + path + "/", "memory.max", "memory.current", "")
                                  : left_by("/sys/fs/cgroup/memory" + path + "/", "memory.limit_in_bytes",
                                            "memory.usage_in_bytes", "total_"));
      if (path.empty()) break;
      const size_t slash = path.rfind('/');
      path.resize(slash == std::string::npos ? 0 : slash);
    }
  }
  return least;
}
#endif

size_t available_memory() {
#ifdef _WIN32
  MEMORYSTATUSEX status;
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? static_cast<size_t>(status.ullAvailPhys) : SIZE_MAX;
#elif defined(__APPLE__)
  vm_statistics64_data_t vm;
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&vm), &count) != KERN_SUCCESS)
    return SIZE_MAX;
  const size_t pages = size_t{vm.free_count} + vm.inactive_count + vm.purgeable_count + vm.external_page_count;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
#elif defined(__linux__)
  const size_t kilobytes = number_of("/proc/meminfo", "MemAvailable:", SIZE_MAX);
  const size_t free = kilobytes == SIZE_MAX ? SIZE_MAX : kilobytes * 1024;
  return std::min(free, left_by_groups());
#else
  return SIZE_MAX;
#endif
}

}  // namespace glmlite
