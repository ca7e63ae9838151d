// Stands in for CUDA's header of the same name when csrc/cuda is compiled for a machine without a GPU: the subset of
// the runtime API and of the device functions that glmlite uses, on the CPU. For tests of arithmetic and of missing
// barriers, not of speed, and not of what only a real GPU does.
//
// Threads of a block are fibers that switch at barriers and exchanges, in an order that options().seed shuffles. Blocks
// run one after another. Work on a stream waits until somebody synchronises, so that reading too early shows; so does
// reading an asynchronous copy early: by the seed it is made at once, or when its group is waited for, or never. One
// block of a kernel that others come before finds, until it waits for them, memory as it was before some of them.
// Memory from cudaMalloc and shared memory begin as NaN, and writing beyond their ends is found.
#pragma once
#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

// ---- types ----------------------------------------------------------------------------------------------------------

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- the machine ----------------------------------------------------------------------------------------------------

struct CUstream_st;

namespace glmlite::cuda_host {

struct Options {
  size_t memory = size_t{1} << 30;  // of the device; cudaMalloc fails beyond it
  int devices = 1;
  uint32_t seed = 0;  // 0: threads run in order, copies are made at once; else shuffled between barriers, any time
  int major = 9, minor = 0;
  int driver = 13000;            // the CUDA that the driver runs; 0: there is none
  size_t fail_after = SIZE_MAX;  // kernels; then the device fails, until `recover`
  bool ahead_in_graphs = true;   // whether kernels that are launched ahead can be captured
};
Options& options();
void recover();     // from what lasts until a process ends
size_t launches();  // kernels run so far

struct ThreadState {
  dim3 thread, block;
  int lane, warp;
};
const ThreadState& thread_state();
const dim3& block_size();
const dim3& grid_size();
void* shared_bytes();
void sync_block();
void sync_warp();
// Gives `bytes` <= 64 of this lane to its warp and returns all lanes' [32][64] once each of them has given.
const uint8_t* exchange(const void* mine, size_t bytes);
// A thread that ends without it is a fault.
void wait_for_previous();
// Asynchronous copies of a thread: all but its last `under_way` groups are there after wait_copies.
void copy_later(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_copies(size_t under_way);
void enqueue(CUstream_st* stream, std::function<void()> work);
void enqueue_kernel(CUstream_st* stream, bool ahead, std::function<void()> kernel);
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

template <class T>
T from_lane(T value, int lane) {
  T result;
  memcpy(&result, exchange(&value, sizeof value) + 64 * lane, sizeof result);
  return result;
}

}  // namespace glmlite::cuda_host

#define threadIdx (glmlite::cuda_host::thread_state().thread)
#define blockIdx (glmlite::cuda_host::thread_state().block)
#define blockDim (glmlite::cuda_host::block_size())
#define gridDim (glmlite::cuda_host::grid_size())

// ---- device functions -----------------------------------------------------------------------------------------------

inline void __syncthreads() { glmlite::cuda_host::sync_block(); }
inline void __syncwarp(unsigned = ~0u) { glmlite::cuda_host::sync_warp(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return glmlite::cuda_host::from_lane(value, glmlite::cuda_host::thread_state().lane ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int apart) {
  const int lane = glmlite::cuda_host::thread_state().lane;
  return glmlite::cuda_host::from_lane(value, lane < apart ? lane : lane - apart);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return glmlite::cuda_host::from_lane(value, lane & 31);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> 4 * i;
    unsigned byte = both >> 8 * (s & 7) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
template <class To, class From>
inline To bits_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return bits_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return bits_cast<unsigned>(x); }
inline float __int_as_float(int x) { return bits_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return bits_cast<float>(x); }
inline int atomicExch(int* p, int value) {
  const int old = *p;
  *p = value;
  return old;
}
inline unsigned atomicAdd(unsigned* p, unsigned value) {
  const unsigned old = *p;
  *p += value;
  return old;
}
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long value) {
  const unsigned long long old = *p;
  *p += value;
  return old;
}
using std::max;
using std::min;

// ---- the runtime API ------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
struct cudaFuncAttributes {
  int ptxVersion;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;
constexpr unsigned cudaEventDefault = 0, cudaEventRecordExternal = 1;
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor, multiProcessorCount;
};
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;

const char* cudaGetErrorName(cudaError_t);
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaRuntimeGetVersion(int*);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaHostAlloc(void**, size_t, unsigned flags);
cudaError_t cudaMallocHost(void**, size_t);
cudaError_t cudaFreeHost(void*);
template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(p), bytes);
}
template <class T>
cudaError_t cudaHostAlloc(T** p, size_t bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(p), bytes, flags);
}
template <class T>
cudaError_t cudaMallocHost(T** p, size_t bytes) {
  return cudaMallocHost(reinterpret_cast<void**>(p), bytes);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr);
cudaError_t cudaMemset(void*, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void*, int value, size_t bytes, cudaStream_t = nullptr);
cudaError_t cudaStreamCreate(cudaStream_t*);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamQuery(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t*);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr);
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned flags);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventQuery(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  return attributes->ptxVersion = 90, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
