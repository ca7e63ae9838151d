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
static size_t number_in(const char* path) {
  std::ifstream file(path);
  size_t value;
  return file >> value ? value : SIZE_MAX;  // cgroup writes "max" where there is no limit
}

// The number in the line that begins with `key`, or `missing`.
static size_t number_of(const char* path, const std::string& key, size_t missing) {
  std::ifstream file(path);
  std::string name, rest;
  for (size_t value; file >> name >> value; std::getline(file, rest))
    if (name == key) return value;
  return missing;
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
  const size_t limit = number_in("/sys/fs/cgroup/memory.max");
  const size_t current = number_in("/sys/fs/cgroup/memory.current");
  if (limit == SIZE_MAX || current == SIZE_MAX) return free;
  // What is cached of files counts as used, but is given up before anything fails.
  const char* stat = "/sys/fs/cgroup/memory.stat";
  const size_t cached = number_of(stat, "inactive_file", 0) + number_of(stat, "active_file", 0);
  const size_t used = current - std::min(current, cached);
  return std::min(free, limit > used ? limit - used : 0);
#else
  return SIZE_MAX;
#endif
}

}  // namespace glmlite
