// NVIDIA GPUs as the executor sees them: what there is, memory on them, errors as exceptions.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../memory.h"

namespace glmlite::cuda {

// Throws std::runtime_error "what: what CUDA says" unless `error` is cudaSuccess.
void check(cudaError_t error, const char* what);

struct DeviceInfo {
  int index;
  std::string name;
  int major, minor;  // compute capability
  size_t total;      // bytes of memory
};

// The GPUs that can be used, at least one. Throws std::runtime_error that says why there are none: no driver, a driver
// that is too old, no device.
std::vector<DeviceInfo> devices();
// One of them, made the current one of this thread. Throws std::runtime_error where there is none with this index.
DeviceInfo use_device(int index);
size_t free_memory();  // bytes, of the current device

// Memory of the device that was current. Not zeroed, aligned to 256 bytes.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(size_t bytes, const std::string& what);  // throws OutOfMemory, which `what` begins
  ~DeviceMemory() { reset(); }
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  void reset();
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void swap(DeviceMemory& other) noexcept;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Memory of the host that a GPU reads and writes while the CPU goes on.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes);  // throws OutOfMemory
  ~PinnedMemory() { reset(); }
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  void reset();
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void swap(PinnedMemory& other) noexcept;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

class Event {
 public:
  // Or cudaEventDefault, to tell the time.
  explicit Event(unsigned flags = cudaEventDisableTiming) {
    check(cudaEventCreateWithFlags(&event_, flags), "an event");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "an event"); }
  // Captured, so that each launch of the graph records it.
  void record_in_graph(cudaStream_t stream) {
    check(cudaEventRecordWithFlags(event_, stream, cudaEventRecordExternal), "an event");
  }
  float microseconds_since(const Event& before) const {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, before.event_, event_), "an event");
    return 1000 * ms;
  }
  void wait() { check(cudaEventSynchronize(event_), "waiting for the GPU"); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace glmlite::cuda
