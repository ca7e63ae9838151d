#include "device.h"

#include <cstdio>
#include <utility>

namespace glmlite::cuda {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // what is not a lasting fault must not be seen by the next call
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

std::vector<DeviceInfo> devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);  // 0 where there is none
    cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver && driver == 0)
      throw std::runtime_error("there is no NVIDIA driver on this machine");
    if (error == cudaErrorInsufficientDriver)
      throw std::runtime_error("the NVIDIA driver is too old: it runs CUDA " + version(driver) +
                               ", this build of glmlite needs " + version(runtime));
    if (error != cudaErrorNoDevice)
      throw std::runtime_error(std::string("CUDA cannot be used: ") + cudaGetErrorString(error) + " (" +
                               cudaGetErrorName(error) + ")");
    count = 0;
  }
  if (count == 0) throw std::runtime_error("there is a driver, but no NVIDIA GPU that this process may use");
  std::vector<DeviceInfo> found;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, i), "properties of a GPU");
    found.push_back({i, p.name, p.major, p.minor, p.totalGlobalMem});
  }
  return found;
}

DeviceInfo use_device(int index) {
  const std::vector<DeviceInfo> all = devices();
  if (index < 0 || index >= static_cast<int>(all.size()))
    throw std::runtime_error("cuda:" + std::to_string(index) + ": there is no such GPU, this machine has cuda:0" +
                             (all.size() > 1 ? " to cuda:" + std::to_string(all.size() - 1) : ""));
  check(cudaSetDevice(index), "choosing a GPU");
  return all[index];
}

size_t free_memory() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "memory of the GPU");
  return free;
}

static std::string gigabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

DeviceMemory::DeviceMemory(size_t bytes, const std::string& what) {
  if (bytes == 0) return;
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw OutOfMemory(what + ": " + gigabytes(bytes) + " of GPU memory could not be had, " + gigabytes(free) + " of " +
                      gigabytes(total) + " are free");
  }
  check(error, "memory");
  data_ = static_cast<uint8_t*>(data);
  size_ = bytes;
}

void DeviceMemory::reset() {
  if (data_) cudaFree(data_);  // fails once the device is lost, and then there is nothing to free
  data_ = nullptr;
  size_ = 0;
}

void DeviceMemory::swap(DeviceMemory& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
}

PinnedMemory::PinnedMemory(size_t bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory("a buffer that the GPU can read", bytes);
  }
  check(error, "a buffer that the GPU can read");
  data_ = static_cast<uint8_t*>(data);
  size_ = bytes;
}

void PinnedMemory::reset() {
  if (data_) cudaFreeHost(data_);
  data_ = nullptr;
  size_ = 0;
}

void PinnedMemory::swap(PinnedMemory& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
}

}  // namespace glmlite::cuda
