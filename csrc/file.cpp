#include "file.h"

#include <algorithm>
#include <cerrno>
#include <utility>

static const char kNotRegular[] = "Not a regular file";
// At once: far below what the systems' calls can count, and what Linux reads in one.
static constexpr uint64_t kMostAtOnce = uint64_t{1} << 30;

#ifdef _WIN32

#include <io.h>
#include <windows.h>

namespace glmlite {

namespace {

[[noreturn]] void fail(const std::string& path, DWORD error) {
  std::error_condition condition =
      std::error_code(static_cast<int>(error), std::system_category()).default_error_condition();
  throw FileError(condition.category() == std::generic_category() ? condition.value() : EIO, path);
}

std::wstring utf16(const std::string& path) {
  int length = MultiByteToWideChar(CP_UTF8, 0, path.data(), static_cast<int>(path.size()), nullptr, 0);
  std::wstring wide(static_cast<size_t>(length), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.data(), static_cast<int>(path.size()), wide.data(), length);
  return wide;
}

HANDLE as_handle(intptr_t handle) { return reinterpret_cast<HANDLE>(handle); }

}  // namespace

// Nobody may write to the file while it is open here; it may be renamed and removed.
File::File(const std::string& path, Reads reads) : path_(path), reads_(reads) {
  std::wstring name = utf16(path);
  HANDLE file = CreateFileW(name.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                            reads == Reads::kDirect ? FILE_FLAG_NO_BUFFERING : FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) {
    DWORD error = GetLastError();
    DWORD attributes = GetFileAttributesW(name.c_str());
    if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY)) throw FileError(EISDIR, path);
    fail(path, error);
  }
  handle_ = reinterpret_cast<intptr_t>(file);
  try {
    if (GetFileType(file) != FILE_TYPE_DISK) throw FileError(EINVAL, kNotRegular, path);
    state_ = state();
  } catch (...) {
    CloseHandle(file);
    throw;
  }
}

File::~File() { CloseHandle(as_handle(handle_)); }

File::State File::state() const {
  BY_HANDLE_FILE_INFORMATION info;
  if (!GetFileInformationByHandle(as_handle(handle_), &info)) fail(path_, GetLastError());
  return {uint64_t{info.nFileSizeHigh} << 32 | info.nFileSizeLow, info.ftLastWriteTime.dwHighDateTime,
          info.ftLastWriteTime.dwLowDateTime};
}

static int64_t read_some(intptr_t handle, const std::string& path, uint64_t offset, uint64_t bytes, void* to) {
  OVERLAPPED at{};
  at.Offset = static_cast<DWORD>(offset);
  at.OffsetHigh = static_cast<DWORD>(offset >> 32);
  DWORD count = 0;
  if (!ReadFile(as_handle(handle), to, static_cast<DWORD>(bytes), &count, &at)) {
    if (const DWORD error = GetLastError(); error != ERROR_HANDLE_EOF) fail(path, error);
  }
  return count;
}

static int64_t write_some(intptr_t handle, const std::string& path, uint64_t offset, uint64_t bytes, const void* from) {
  OVERLAPPED at{};
  at.Offset = static_cast<DWORD>(offset);
  at.OffsetHigh = static_cast<DWORD>(offset >> 32);
  DWORD count = 0;
  if (!WriteFile(as_handle(handle), from, static_cast<DWORD>(bytes), &count, &at)) fail(path, GetLastError());
  return count;
}

Mapping::Mapping(const File& file) : size_(static_cast<size_t>(file.size())) {
  const HANDLE section = CreateFileMappingW(as_handle(file.handle_), nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (!section) fail(file.path(), GetLastError());
  data_ = static_cast<const uint8_t*>(MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0));
  const DWORD error = GetLastError();
  CloseHandle(section);
  if (!data_) fail(file.path(), error);
}

void Mapping::reset() {
  if (data_) UnmapViewOfFile(data_);
}

void Mapping::read_ahead(size_t offset, size_t bytes) const {
  WIN32_MEMORY_RANGE_ENTRY range{const_cast<uint8_t*>(data_) + offset, bytes};
  PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}

Output::Output(int descriptor, const std::string& path) : path_(path), handle_(_get_osfhandle(descriptor)) {}

void Output::resize(uint64_t bytes) const {
  FILE_END_OF_FILE_INFO end;
  end.EndOfFile.QuadPart = static_cast<LONGLONG>(bytes);
  if (!SetFileInformationByHandle(as_handle(handle_), FileEndOfFileInfo, &end, sizeof end)) fail(path_, GetLastError());
}

void Output::sync() const {
  if (!FlushFileBuffers(as_handle(handle_))) fail(path_, GetLastError());
}

}  // namespace glmlite

#else

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace glmlite {

namespace {

// Makes its reads direct, unless the file system has none.
void read_directly(int descriptor) {
#ifdef __APPLE__
  fcntl(descriptor, F_NOCACHE, 1);
#elif defined(O_DIRECT)
  const int flags = fcntl(descriptor, F_GETFL);
  if (fcntl(descriptor, F_SETFL, flags | O_DIRECT) != 0) return;
  alignas(File::kDirectUnit) char unit[File::kDirectUnit];  // some refuse only the read
  if (pread(descriptor, unit, sizeof unit, 0) < 0) fcntl(descriptor, F_SETFL, flags);
#endif
}

}  // namespace

File::File(const std::string& path, Reads reads) : path_(path), reads_(reads) {
  int descriptor;
  do {
    // Without O_NONBLOCK the open of a FIFO waits for somebody to write to it.
    descriptor = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) throw FileError(errno, path);
  handle_ = descriptor;
  try {
    struct stat status;
    if (fstat(descriptor, &status) != 0) throw FileError(errno, path);
    if (S_ISDIR(status.st_mode)) throw FileError(EISDIR, path);
    if (!S_ISREG(status.st_mode)) throw FileError(EINVAL, kNotRegular, path);
    if (reads == Reads::kDirect) read_directly(descriptor);
    state_ = state();
  } catch (...) {
    close(descriptor);
    throw;
  }
}

File::~File() { close(static_cast<int>(handle_)); }

File::State File::state() const {
  struct stat status;
  if (fstat(static_cast<int>(handle_), &status) != 0) throw FileError(errno, path_);
#ifdef __APPLE__
  const timespec& changed = status.st_mtimespec;
#else
  const timespec& changed = status.st_mtim;
#endif
  return {static_cast<uint64_t>(status.st_size), static_cast<int64_t>(changed.tv_sec),
          static_cast<int64_t>(changed.tv_nsec)};
}

static int64_t read_some(intptr_t handle, const std::string& path, uint64_t offset, uint64_t bytes, void* to) {
  ssize_t count;
  do {
    count = pread(static_cast<int>(handle), to, static_cast<size_t>(bytes), static_cast<off_t>(offset));
  } while (count < 0 && errno == EINTR);
  if (count < 0) throw FileError(errno, path);
  return count;
}

static int64_t write_some(intptr_t handle, const std::string& path, uint64_t offset, uint64_t bytes, const void* from) {
  ssize_t count;
  do {
    count = pwrite(static_cast<int>(handle), from, static_cast<size_t>(bytes), static_cast<off_t>(offset));
  } while (count < 0 && errno == EINTR);
  if (count < 0) throw FileError(errno, path);
  return count;
}

Mapping::Mapping(const File& file) : size_(static_cast<size_t>(file.size())) {
  void* at = mmap(nullptr, size_, PROT_READ, MAP_SHARED, static_cast<int>(file.handle_), 0);
  if (at == MAP_FAILED) throw FileError(errno, file.path());
  data_ = static_cast<const uint8_t*>(at);
}

void Mapping::reset() {
  if (data_) munmap(const_cast<uint8_t*>(data_), size_);
}

void Mapping::read_ahead(size_t offset, size_t bytes) const {
  madvise(const_cast<uint8_t*>(data_) + offset, bytes, MADV_WILLNEED);
}

Output::Output(int descriptor, const std::string& path) : path_(path), handle_(descriptor) {}

void Output::resize(uint64_t bytes) const {
  int failed;
  do failed = ftruncate(static_cast<int>(handle_), static_cast<off_t>(bytes));
  while (failed && errno == EINTR);
  if (failed) throw FileError(errno, path_);
#ifdef __linux__
  do failed = fallocate(static_cast<int>(handle_), 0, 0, static_cast<off_t>(bytes));
  while (failed && errno == EINTR);
  if (failed && errno != EOPNOTSUPP && errno != ENOSYS) throw FileError(errno, path_);
#endif
}

void Output::sync() const {
  if (fsync(static_cast<int>(handle_)) != 0) throw FileError(errno, path_);
}

}  // namespace glmlite

#endif

namespace glmlite {

void Mapping::swap(Mapping& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
}

void Output::write(uint64_t offset, uint64_t bytes, const void* from) const {
  const auto* at = static_cast<const uint8_t*>(from);
  for (const uint64_t end = offset + bytes; offset < end;) {
    const int64_t count = write_some(handle_, path_, offset, std::min(end - offset, kMostAtOnce), at);
    if (count <= 0) throw FileError(ENOSPC, path_);
    offset += static_cast<uint64_t>(count);
    at += count;
  }
}

void File::read(uint64_t offset, uint64_t bytes, void* to) const {
  auto* at = static_cast<uint8_t*>(to);
  for (uint64_t end = offset + bytes; offset < end;) {
    const int64_t count = read_some(handle_, path_, offset, std::min(end - offset, kMostAtOnce), at);
    // After a part of a unit there is nothing more, and it could not be asked for.
    if (count == 0 || (reads_ == Reads::kDirect && static_cast<uint64_t>(count) % kDirectUnit != 0)) {
      offset += static_cast<uint64_t>(count);
      throw FileError(EIO,
                      "The file ends at byte " + std::to_string(offset) + " and had " + std::to_string(size()) +
                          " bytes when it was opened: it was cut short meanwhile",
                      path_);
    }
    offset += static_cast<uint64_t>(count);
    at += count;
  }
}

static const char kChanged[] = "The file was changed while it was read: load it again";

void File::check_unchanged() const {
  if (!(state() == state_)) throw FileError(EIO, kChanged, path_);
}

void File::check_same(const File& other) const {
  if (!(other.state_ == state_)) throw FileError(EIO, kChanged, path_);
}

}  // namespace glmlite
