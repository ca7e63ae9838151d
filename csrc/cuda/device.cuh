// What all kernels use: launches, sums over a warp, and, from ptx.cuh, what needs assembly.
//
// Compiled with -fmad=false: a fused multiply-add is only ever an explicit one. Without nvcc, tests/native/cuda_host
// stands in for CUDA.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels.h"
#ifdef __CUDACC__
#include "ptx.cuh"
#else
#include "warp_host.h"
#endif

namespace glmlite::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

// Shared memory of a block that is granted without being asked for; all devices grant 64 KB if asked.
constexpr size_t kSharedBytes = 48 << 10;

inline void check_launch(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Kernels follow one another closely (programmatic dependent launch): on sm_90 and later a kernel may start, and fetch
// weights, which never change, while the ones before it are running. So each thread of each kernel calls
// wait_for_previous, before it reads or writes anything that another kernel or a copy writes or reads. None ends
// without it, since the kernel after it waits for this one alone.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, Args... args) {
  if (shared_bytes > kSharedBytes)
    check_launch(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
#ifdef __CUDACC__
  cudaLaunchAttribute ahead{};
  ahead.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  ahead.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &ahead;
  config.numAttrs = launches_ahead() ? 1 : 0;
  check_launch(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
#else
  cuda_host::enqueue_kernel(stream, launches_ahead(), [=] {
    cuda_host::run_grid(grid, block, shared_bytes, [&] { kernel(static_cast<Params>(args)...); });
  });
#endif
  check_launch(cudaGetLastError());
}

inline unsigned blocks_of(int64_t count, int64_t size) { return static_cast<unsigned>((count + size - 1) / size); }

// A warp asks for its next bytes of weights.
__device__ inline void prefetch_bytes(const uint8_t* from, int bytes) {
  constexpr int kLine = 128;
  for (int at = threadIdx.x % kWarp * kLine; at < bytes; at += kWarp * kLine) prefetch(from + at);
}

// Over the lanes of a warp, as a tree: 16 apart, then 8, 4, 2, 1. All lanes get the result.
__device__ inline float warp_sum(float x) {
  for (int apart = kWarp / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int apart = kWarp / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, apart));
  return x;
}

}  // namespace glmlite::cuda
