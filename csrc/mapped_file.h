// A file in memory, read-only. All that opening and mapping files needs of the operating system is in mapped_file.cpp.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>

namespace glmlite {

// A path is bytes: what the system takes, or UTF-8 on Windows; os.fsencode of Python gives exactly that.

// The system refused a file. -> OSError(error, reason, path), which Python turns into FileNotFoundError and the like;
// MemoryError for ENOMEM.
struct FileError : std::runtime_error {
  FileError(int error, const std::string& path) : FileError(error, std::generic_category().message(error), path) {}
  FileError(int error, const std::string& reason, const std::string& path)
      : std::runtime_error(path + ": " + reason), error(error), reason(reason), path(path) {}
  int error;  // errno, on every system
  std::string reason;
  std::string path;
};

class MappedFile {
 public:
  // Throws FileError if the file is missing, unreadable or anything but a regular file. Never waits for a FIFO's
  // writer.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }  // null if the file is empty
  uint64_t size() const { return size_; }

  // The file is at least as long as it was when it was mapped. On Linux and macOS another process may shorten it, and
  // to touch a page beyond the new end then kills this process (SIGBUS). A check before reading makes that a race
  // instead of a certainty; nothing short of a signal handler, which is the host program's to have, excludes it.
  // Windows refuses to shorten a mapped file.
  bool intact() const;

  // Drops the pages of [begin, begin + bytes), a part of the file, from this process's memory. They stay readable.
  void release(const uint8_t* begin, uint64_t bytes) const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  [[maybe_unused]] int descriptor_ = -1;  // for intact(), which needs none on Windows
};

}  // namespace glmlite
