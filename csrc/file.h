// A file that is read, never mapped: what another program does to it meanwhile (shortens, rewrites or removes it, or
// pulls out the disk) is an exception here, not a signal. All that files need of the operating system is in file.cpp.
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

class File {
 public:
  // Throws FileError if the file is missing, unreadable or anything but a regular file. Never waits for a FIFO's
  // writer.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return state_.size; }  // when it was opened

  // The bytes [offset, offset + bytes). Throws FileError if they cannot be read, or the file ends before. Any number of
  // threads may read.
  void read(uint64_t offset, uint64_t bytes, void* to) const;

  // Throws FileError if the file has another size, or was written to later, than when it was opened: what was read of
  // it may then be of two versions.
  void check_unchanged() const;

 private:
  struct State {
    uint64_t size;
    int64_t seconds, fraction;  // of the last change, in the system's own units
    bool operator==(const State& o) const { return size == o.size && seconds == o.seconds && fraction == o.fraction; }
  };
  State state() const;

  const std::string path_;
  intptr_t handle_ = -1;  // a descriptor; on Windows a HANDLE
  State state_{};
};

}  // namespace glmlite
