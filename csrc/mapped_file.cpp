#include "mapped_file.h"

#include <cerrno>
#include <limits>

static const char kNotRegular[] = "Not a regular file";

#ifdef _WIN32

#include <windows.h>

namespace glmlite {

namespace {

[[noreturn]] void fail(const std::string& path, DWORD error) {
  std::error_condition condition =
      std::error_code(static_cast<int>(error), std::system_category()).default_error_condition();
  throw FileError(condition.category() == std::generic_category() ? condition.value() : EIO, path);
}

struct Handle {
  HANDLE handle;
  ~Handle() {
    if (handle != nullptr && handle != INVALID_HANDLE_VALUE) CloseHandle(handle);
  }
};

std::wstring utf16(const std::string& path) {
  int length = MultiByteToWideChar(CP_UTF8, 0, path.data(), static_cast<int>(path.size()), nullptr, 0);
  std::wstring wide(static_cast<size_t>(length), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.data(), static_cast<int>(path.size()), wide.data(), length);
  return wide;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  std::wstring name = utf16(path);
  Handle file{CreateFileW(name.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                          FILE_ATTRIBUTE_NORMAL, nullptr)};
  if (file.handle == INVALID_HANDLE_VALUE) {
    DWORD error = GetLastError();
    DWORD attributes = GetFileAttributesW(name.c_str());
    if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY)) throw FileError(EISDIR, path);
    fail(path, error);
  }
  if (GetFileType(file.handle) != FILE_TYPE_DISK) throw FileError(EINVAL, kNotRegular, path);
  LARGE_INTEGER size;
  if (!GetFileSizeEx(file.handle, &size)) fail(path, GetLastError());
  size_ = static_cast<uint64_t>(size.QuadPart);
  if (size_ == 0) return;
  if (size_ > std::numeric_limits<size_t>::max()) throw FileError(EFBIG, path);
  // The view keeps the section, and so the file, alive when the handles are closed.
  Handle section{CreateFileMappingW(file.handle, nullptr, PAGE_READONLY, 0, 0, nullptr)};
  if (section.handle == nullptr) fail(path, GetLastError());
  data_ = static_cast<const uint8_t*>(MapViewOfFile(section.handle, FILE_MAP_READ, 0, 0, 0));
  if (data_ == nullptr) fail(path, GetLastError());
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) UnmapViewOfFile(data_);
}

bool MappedFile::intact() const { return true; }

void MappedFile::release(const uint8_t* begin, uint64_t bytes) const {
  // Unlocking pages that are not locked takes them out of the working set; that it reports an error is as documented.
  VirtualUnlock(const_cast<uint8_t*>(begin), static_cast<size_t>(bytes));
}

}  // namespace glmlite

#else

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace glmlite {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  do {
    // Without O_NONBLOCK the open of a FIFO waits for somebody to write to it.
    descriptor_ = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) throw FileError(errno, path);
  auto fail = [&](int error, const char* reason = nullptr) {
    close(descriptor_);
    throw reason != nullptr ? FileError(error, reason, path) : FileError(error, path);
  };
  struct stat status;
  if (fstat(descriptor_, &status) != 0) fail(errno);
  if (S_ISDIR(status.st_mode)) fail(EISDIR);
  if (!S_ISREG(status.st_mode)) fail(EINVAL, kNotRegular);
  size_ = static_cast<uint64_t>(status.st_size);
  if (size_ == 0) return;
  if (size_ > std::numeric_limits<size_t>::max()) fail(EFBIG);
  void* data = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, descriptor_, 0);
  if (data == MAP_FAILED) fail(errno);
  data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
  close(descriptor_);
}

bool MappedFile::intact() const {
  struct stat status;
  return fstat(descriptor_, &status) == 0 && static_cast<uint64_t>(status.st_size) >= size_;
}

void MappedFile::release(const uint8_t* begin, uint64_t bytes) const {
  // Whole pages, outwards: a neighbour that shared the first or last one finds it in the system's cache.
  uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  uint64_t first = static_cast<uint64_t>(begin - data_) / page * page;
  uint64_t end = static_cast<uint64_t>(begin - data_) + bytes;
  madvise(const_cast<uint8_t*>(data_) + first, static_cast<size_t>(end - first), MADV_DONTNEED);
}

}  // namespace glmlite

#endif
