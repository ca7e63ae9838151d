// Rows of values, written as f32 and in the quantized form: what the kernels of rows have in common.
#pragma once
#include "device.cuh"
#include "pack.h"

namespace glmlite::cuda {

// A block of 32 columns, one in each lane, to its place in a row's superblock: cpu/kernels.h, `quantize`, and pack.h.
__device__ inline void quantize_block(float x, int block, uint8_t* super) {
  const int lane = threadIdx.x % kWarp;
  // Bits, not numbers, so that a NaN is the largest.
  uint32_t largest = __float_as_uint(fabsf(x));
  for (int apart = kWarp / 2; apart > 0; apart /= 2) largest = max(largest, __shfl_xor_sync(kAllLanes, largest, apart));
  const float top = __uint_as_float(largest);
  float d = 1;
  int q = 0;
  if (top >= 0x1p-90f && top < 0x1p96f) {
    constexpr uint32_t kUnit = 1u << 19;  // of the last of four bits after the leading one
    d = __uint_as_float((__float_as_uint(top / 127.0f) + kUnit - 1) & ~(kUnit - 1));
    const float scaled = x * (1.0f / d);
    // Half away from zero; the number before 0.5, because 0.5 itself would carry 0.49999997 to 1.
    q = static_cast<int>(truncf(scaled + copysignf(0x1.fffffep-2f, scaled)));
  }
  int sum = q;
  for (int apart = 8; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
  const int other = __shfl_xor_sync(kAllLanes, sum, 16);
  if (!(top < 0x1p96f)) d = __uint_as_float(0x7fc00000);
  super[block / 2 * 64 + lane % 16 / 4 * 16 + block % 2 * 8 + lane / 16 * 4 + lane % 4] = static_cast<uint8_t>(q);
  if (lane == 0) {
    reinterpret_cast<float*>(super + kActScales)[block] = d;
    reinterpret_cast<float*>(super + kActProducts)[block] = d * static_cast<float>(sum + other);
  }
  if (lane % 16 == 0)
    reinterpret_cast<float*>(super + kActHalfProducts)[2 * block + lane / 16] = d * static_cast<float>(sum);
}

// Where rows go: either may be null.
struct Result {
  float* y;         // (rows, n)
  uint8_t* blocks;  // act_bytes(n, rows)
  int n;

  // Whole warps call this with 32 columns that begin at a multiple of 32; columns from n on count as 0.
  __device__ void put(int row, int column, float v) const {
    const bool inside = column < n;
    if (y && inside) y[static_cast<int64_t>(row) * n + column] = v;
    if (blocks) {
      const int supers = static_cast<int>(supers_of(n));
      quantize_block(inside ? v : 0.0f, column % kSuperColumns / kBlockColumns,
                     blocks + (static_cast<int64_t>(row) * supers + column / kSuperColumns) * kActSuperBytes);
    }
  }
};

// x / (1 + e^z)
__device__ inline float divide_by_one_plus_exp(float x, float z) { return x / (1.0f + expf(z)); }

// silu(gate) * up, silu(x) = x / (1 + e^-x)
__device__ inline float silu_times(float gate, float up) { return divide_by_one_plus_exp(gate, -gate) * up; }

// Grid: (superblocks, rows). Source: float operator()(int row, int column) for column < n.
constexpr int kEachThreads = kSuperColumns;
template <class Source>
__global__ void __launch_bounds__(kEachThreads) each_value(Source source, Result result) {
  start_next();
  wait_for_previous();
  const int row = blockIdx.y, column = blockIdx.x * kSuperColumns + threadIdx.x;
  result.put(row, column, column < result.n ? source(row, column) : 0.0f);
}
template <class Source>
void launch_each(const Source& source, int64_t rows, const Result& result, Stream stream) {
  constexpr int64_t kMostRows = 65535;  // of a grid's y
  if (rows > kMostRows) throw std::invalid_argument("a step of " + std::to_string(rows) + " tokens, at most 65535");
  if (rows > 0)
    launch(each_value<Source>, dim3(blocks_of(result.n, kSuperColumns), static_cast<unsigned>(rows)), kEachThreads, 0,
           stream, source, result);
}

}  // namespace glmlite::cuda
