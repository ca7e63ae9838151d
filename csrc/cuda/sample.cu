// Logits: the largest, and whether they are numbers; and the state of the next step.
#include "device.cuh"

namespace glmlite::cuda {

namespace {

constexpr int kThreads = 1024;

// A key whose order is that of (logit, then lower index). NaN, which no sane row has, is below all numbers.
__device__ inline uint64_t order_of(float logit, int index) {
  const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);  // -0 equals 0
  const uint32_t ascending = logit == logit ? (bits >> 31 ? ~bits : bits | 0x80000000u) : 0;
  return static_cast<uint64_t>(ascending) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

// Grid: rows. Shared: a key for each warp.
__global__ void __launch_bounds__(kThreads) largest_of_row(const float* x, int n, int32_t* tokens) {
  start_next();
  wait_for_previous();
  const float* row = x + static_cast<int64_t>(blockIdx.x) * n;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint64_t* shared = reinterpret_cast<uint64_t*>(shared_memory());
  uint64_t best = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < n; i += kThreads) best = max(best, order_of(row[i], i));
  for (int apart = kWarp / 2; apart > 0; apart /= 2) best = max(best, __shfl_xor_sync(kAllLanes, best, apart));
  if (lane == 0) shared[warp] = best;
  __syncthreads();
  best = shared[lane];
  for (int apart = kWarp / 2; apart > 0; apart /= 2) best = max(best, __shfl_xor_sync(kAllLanes, best, apart));
  const uint32_t index = 0xffffffffu - static_cast<uint32_t>(best);
  if (threadIdx.x == 0) tokens[blockIdx.x] = best >> 32 ? static_cast<int32_t>(index) : 0;
}

// Grid: (pieces of a row, rows).
__global__ void __launch_bounds__(kThreads) find_bad(const float* x, int n, const int32_t* row_token, int32_t* bad) {
  start_next();
  wait_for_previous();
  const int row = blockIdx.y;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    if ((__float_as_uint(x[static_cast<int64_t>(row) * n + i]) & 0x7f800000) == 0x7f800000)
      bad[row_token ? row_token[row] : row] = 1;
  }
}

__global__ void next_state(int tokens, const int32_t* step0, const int32_t* step1, int32_t* position0,
                           int32_t* position1, int32_t* entry, int32_t* visible) {
  start_next();
  wait_for_previous();
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= tokens) return;
  position0[t] += step0[t];
  position1[t] += step1[t];
  ++entry[t];
  ++visible[t];
}

}  // namespace

void check_finite(const float* x, int64_t rows, int64_t n, const int32_t* row_token, int32_t* bad, Stream stream) {
  if (rows > 0)
    launch(find_bad, dim3(blocks_of(n, 8 * kThreads), static_cast<unsigned>(rows)), kThreads, 0, stream, x,
           static_cast<int>(n), row_token, bad);
}

void argmax(const float* logits, int64_t rows, int64_t vocab, int32_t* tokens, Stream stream) {
  if (rows > 0)
    launch(largest_of_row, static_cast<unsigned>(rows), kThreads, sizeof(uint64_t) * kWarp, stream, logits,
           static_cast<int>(vocab), tokens);
}

void advance(int64_t tokens, const int32_t* const position_step[2], int32_t* const positions[2], int32_t* entry,
             int32_t* visible, Stream stream) {
  if (tokens > 0)
    launch(next_state, blocks_of(tokens, 128), 128, 0, stream, static_cast<int>(tokens), position_step[0],
           position_step[1], positions[0], positions[1], entry, visible);
}

}  // namespace glmlite::cuda
