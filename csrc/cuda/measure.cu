#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "device.h"
#include "measure.h"

namespace glmlite::cuda {

namespace {

constexpr int kRounds = 4096, kChains = 8, kWarps = 4;

// Independent chains of 16x8x16 products, so that the latency of one is hidden by the others.
__global__ void products(float* result) {
#if __CUDA_ARCH__ >= 800
  float sums[kChains][4] = {};
  const uint32_t a = 0x3f803f80u + threadIdx.x, b = 0x3f803f80u;  // pairs of bf16 near 1
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, {%0, %1, "
          "%2, %3};"
          : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
          : "r"(a), "r"(b));
  }
  float all = 0;
  for (int i = 0; i < kChains; ++i)
    for (int j = 0; j < 4; ++j) all += sums[i][j];
  if (all == 0) *result = all;  // never: keeps the products
#endif
}

// The least milliseconds of several runs of what `work` enqueues.
template <class Work>
float best_of(const Work& work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "timing");
  check(cudaEventCreate(&end), "timing");
  float best = 1e30f;
  for (int i = 0; i < 8; ++i) {  // the first warms up
    check(cudaEventRecord(begin), "timing");
    work();
    check(cudaGetLastError(), "timing");
    check(cudaEventRecord(end), "timing");
    check(cudaEventSynchronize(end), "timing");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "timing");
    if (i > 0) best = std::min(best, ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

}  // namespace

double measure_bandwidth(int device) {
  use_device(device);
  const size_t bytes = std::min<size_t>(size_t{1} << 30, free_memory() / 4);
  DeviceMemory from(bytes, "measuring the bandwidth"), to(bytes, "measuring the bandwidth");
  const float ms = best_of([&] {
    check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, nullptr), "measuring the bandwidth");
  });
  return 2.0 * static_cast<double>(bytes) / 1e6 / ms;
}

double measure_bf16(int device) {
  if (use_device(device).major < 8) return 0;
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "measuring the bf16 rate");
  DeviceMemory result(sizeof(float), "measuring the bf16 rate");
  const int blocks = multiprocessors * 4;
  const float ms = best_of([&] { products<<<blocks, 32 * kWarps>>>(reinterpret_cast<float*>(result.data())); });
  return 2.0 * 16 * 8 * 16 * kChains * kRounds * kWarps * blocks / 1e6 / ms;
}

}  // namespace glmlite::cuda
