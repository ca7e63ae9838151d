// Files that are read, mapped and written: all that they need of the operating system is in file.cpp. A model's file is
// read, never mapped: what another program does to it meanwhile (shortens, rewrites or removes it, or pulls out the
// disk) is an exception here, not a signal.
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
  enum class Reads {
    kCached,
    kDirect  // past the system's cache, where it can: in whole kDirectUnits, of the file and of memory
  };
  static constexpr uint64_t kDirectUnit = 4096;

  // Throws FileError if the file is missing, unreadable or anything but a regular file. Never waits for a FIFO's
  // writer.
  explicit File(const std::string& path, Reads reads = Reads::kCached);
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
  // Throws FileError likewise if another file, opened by the same path, is not the same version.
  void check_same(const File& other) const;

 private:
  struct State {
    uint64_t size;
    int64_t seconds, fraction;  // of the last change, in the system's own units
    bool operator==(const State& o) const { return size == o.size && seconds == o.seconds && fraction == o.fraction; }
  };
  State state() const;

  const std::string path_;
  const Reads reads_;
  intptr_t handle_ = -1;  // a descriptor; on Windows a HANDLE
  State state_{};
  friend class Mapping;
};

// A file's bytes as memory that nobody writes to, shared by all processes that map it. It outlives the File. To cut the
// file meanwhile ends the process: only files of our own making are mapped.
class Mapping {
 public:
  Mapping() = default;
  explicit Mapping(const File& file);  // Throws FileError, OutOfMemory
  ~Mapping() { reset(); }
  Mapping(Mapping&& other) noexcept { swap(other); }
  Mapping& operator=(Mapping&& other) noexcept {
    swap(other);
    return *this;
  }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Has the system read these ahead, from a whole page on: a wish.
  void read_ahead(size_t offset, size_t bytes) const;

 private:
  void reset();
  void swap(Mapping& other) noexcept;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// A file that the caller has opened for writing, and closes. Any number of threads may write. Throws FileError.
class Output {
 public:
  Output(int descriptor, const std::string& path);  // path: for messages
  // So many bytes, zeros where nothing is written; where the system can tell that its disk is too full, at once.
  void resize(uint64_t bytes) const;
  void write(uint64_t offset, uint64_t bytes, const void* from) const;
  void sync() const;  // until it would survive the machine

 private:
  const std::string path_;
  const intptr_t handle_;
};

}  // namespace glmlite
