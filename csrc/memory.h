// Large blocks of memory straight from the system, so that freeing them gives them back at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#include <string>

namespace glmlite {

// "what: 5.1 GB of memory could not be had". -> MemoryError
class OutOfMemory : public std::bad_alloc {
 public:
  OutOfMemory(const std::string& what, size_t bytes);
  explicit OutOfMemory(const std::string& message) : message_(message) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Zeroed, aligned to 64 bytes at least, in 2 MB pages where the system grants them.
class Memory {
 public:
  Memory() = default;
  Memory(size_t bytes, const std::string& what);  // `what` names it in OutOfMemory
  ~Memory() { reset(); }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  void reset();
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as(size_t byte_offset = 0) const {
    return reinterpret_cast<T*>(data_ + byte_offset);
  }

 private:
  void swap(Memory& other) noexcept;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  void* mapped_ = nullptr;
  size_t mapped_size_ = 0;
};

// The multiple of 64, which a Memory is aligned to, from `bytes` on.
inline size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Gives back what the C library's heap keeps for later allocations: 30 MB after GLM-4's tokenizer was made.
void trim_heap();

// Bytes that this process can still have without swapping, as far as the system tells; SIZE_MAX if it does not.
size_t available_memory();

}  // namespace glmlite
