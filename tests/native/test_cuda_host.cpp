// The emulator must find what it is there to find.
#include <cuda_runtime.h>

#include <utility>
#include <vector>

#include "check.h"
#include "cuda/device.cuh"

using namespace glmlite::cuda;

namespace {

// Each thread's number, backwards, through shared memory: `barrier` says whether it waits before it reads.
void reverse(int* to, bool barrier) {
  wait_for_previous();
  int* shared = reinterpret_cast<int*>(shared_memory());
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (barrier) __syncthreads();
  to[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// A race, too, where a warp has much to do between its write and its reads: another has written then, unless it is
// slow.
void reverse_late(int* to, bool barrier) {
  wait_for_previous();
  int* shared = reinterpret_cast<int*>(shared_memory());
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 9; ++i) __syncwarp();
  if (barrier) __syncthreads();
  to[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

bool reverses(void (*kernel)(int*, bool), bool barrier, unsigned seed) {
  glmlite::cuda_host::options().seed = seed;
  int* device;
  std::vector<int> got(64);
  CHECK(cudaMalloc(&device, 64 * sizeof(int)) == cudaSuccess);
  launch(kernel, dim3(1), dim3(64), 64 * sizeof(int), nullptr, device, barrier);
  CHECK(cudaMemcpy(got.data(), device, 64 * sizeof(int), cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(cudaFree(device) == cudaSuccess);
  for (int i = 0; i < 64; ++i) {
    if (got[i] != 63 - i) return false;
  }
  return true;
}

// The four words of each thread, twice, by two copies of a group each; `under_way` of them are not waited for, -1:
// both.
void copy_twice(const uint4* from, uint4* to, int under_way) {
  wait_for_previous();
  uint4* shared = reinterpret_cast<uint4*>(shared_memory()) + 2 * threadIdx.x;
  for (int i = 0; i < 2; ++i) {
    copy_async(shared + i, from + threadIdx.x);
    commit_copies();
  }
  if (under_way == 1) copies_done<1>();
  if (under_way == 0) copies_done<0>();
  for (int i = 0; i < 2; ++i) to[2 * threadIdx.x + i] = shared[i];
}

// How many of the first, and of the second copies of 64 threads are there.
std::pair<int, int> copies_that_land(int under_way, unsigned seed) {
  glmlite::cuda_host::options().seed = seed;
  uint4 words[64], got[128], *from, *to;
  for (unsigned i = 0; i < 64; ++i) words[i] = {i, i, i, i};
  CHECK(cudaMalloc(&from, sizeof words) == cudaSuccess && cudaMalloc(&to, sizeof got) == cudaSuccess);
  CHECK(cudaMemcpy(from, words, sizeof words, cudaMemcpyHostToDevice) == cudaSuccess);
  launch(copy_twice, dim3(1), dim3(64), sizeof got, nullptr, from, to, under_way);
  CHECK(cudaMemcpy(got, to, sizeof got, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(cudaFree(from) == cudaSuccess && cudaFree(to) == cudaSuccess);
  int landed[2] = {};
  for (unsigned i = 0; i < 128; ++i) landed[i % 2] += got[i].x == i / 2 && got[i].w == i / 2;
  return {landed[0], landed[1]};
}

// x[block] += 1; `early`: reads it before it waits for the kernels before.
void add_one(int* x, bool early) {
  int value = x[blockIdx.x];
  wait_for_previous();
  if (!early) value = x[blockIdx.x];
  x[blockIdx.x] = value + 1;
}
void sum_lanes(float* to) {
  wait_for_previous();
  to[threadIdx.x] = warp_sum(static_cast<float>(threadIdx.x));
}
void write_beyond(int bytes) {
  wait_for_previous();
  shared_memory()[bytes + 8] = 0;
}
void end_without_waiting(int) {
  if (threadIdx.x > 0) wait_for_previous();
}
void wait_for_nobody(int) {
  wait_for_previous();
  if (threadIdx.x % 32 == 0) __syncwarp();
}
}  // namespace

TEST(a_missing_barrier_shows) {
  // In some order of threads; one that is there never does.
  int wrong = 0, wrong_late = 0;
  for (unsigned seed = 0; seed < 8; ++seed) {
    CHECK(reverses(reverse, true, seed) && reverses(reverse_late, true, seed));
    wrong += !reverses(reverse, false, seed);
    wrong_late += !reverses(reverse_late, false, seed);
  }
  CHECK(wrong == 8);
  CHECK(wrong_late > 0);
}

TEST(a_missing_wait_for_a_copy_shows) {
  for (unsigned seed = 1; seed < 8; ++seed) {
    CHECK(copies_that_land(0, seed) == std::make_pair(64, 64));
    const auto [first, second] = copies_that_land(1, seed);
    CHECK(first == 64 && second > 0 && second < 64);
    const auto [any, other] = copies_that_land(-1, seed);
    CHECK(any > 0 && any < 64 && other > 0 && other < 64);
  }
}

TEST(what_is_read_before_waiting_for_other_kernels_shows) {
  constexpr int kKernels = 40, kBlocks = 3;
  int zero[kBlocks] = {}, got[kBlocks], *device;
  CHECK(cudaMalloc(&device, sizeof got) == cudaSuccess);
  for (unsigned seed = 1; seed < 8; ++seed) {
    glmlite::cuda_host::options().seed = seed;
    for (const bool early : {false, true}) {
      CHECK(cudaMemcpy(device, zero, sizeof got, cudaMemcpyHostToDevice) == cudaSuccess);
      for (int i = 0; i < kKernels; ++i) launch(add_one, dim3(kBlocks), dim3(1), 0, nullptr, device, early);
      CHECK(cudaMemcpy(got, device, sizeof got, cudaMemcpyDeviceToHost) == cudaSuccess);
      const int least = *std::min_element(got, got + kBlocks);
      CHECK(early ? least < kKernels : least == kKernels);
    }
  }
  CHECK(cudaFree(device) == cudaSuccess);
}

TEST(lanes_exchange) {
  float* sums;
  float got[64];
  CHECK(cudaMalloc(&sums, sizeof got) == cudaSuccess);
  launch(sum_lanes, dim3(1), dim3(64), 0, nullptr, sums);
  CHECK(cudaMemcpy(got, sums, sizeof got, cudaMemcpyDeviceToHost) == cudaSuccess);
  for (int i = 0; i < 64; ++i) CHECK(got[i] == (i < 32 ? 496 : 1520));
  CHECK(cudaFree(sums) == cudaSuccess);
}

// A captured graph runs as often as it is launched.
TEST(work_waits_for_a_synchronisation) {
  cudaStream_t stream;
  int *device, host = 0, *pinned;
  CHECK(cudaStreamCreate(&stream) == cudaSuccess);
  CHECK(cudaMalloc(&device, sizeof(int)) == cudaSuccess);
  CHECK(cudaHostAlloc(&pinned, sizeof(int), 0) == cudaSuccess);
  CHECK(cudaMemcpy(device, &host, sizeof(int), cudaMemcpyHostToDevice) == cudaSuccess);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  launch(add_one, dim3(1), dim3(1), 0, stream, device, false);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
  for (int i = 0; i < 3; ++i) CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
  CHECK(cudaMemcpyAsync(pinned, device, sizeof(int), cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(*pinned == -1);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  CHECK(*pinned == 3);
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);

  CHECK(cudaFree(device) == cudaSuccess && cudaFreeHost(pinned) == cudaSuccess);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST(memory_ends_where_it_is_said_to_end) {
  const size_t before = glmlite::cuda_host::options().memory;
  glmlite::cuda_host::options().memory = 1000;
  void* p;
  CHECK(cudaMalloc(&p, 2000) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
  glmlite::cuda_host::options().memory = before;
}

// Fatal, as on a GPU: what comes after fails too, until the tests' `recover`.
TEST(faults_of_kernels_are_reported) {
  for (void (*kernel)(int) : {write_beyond, wait_for_nobody, end_without_waiting}) {
    launch(kernel, dim3(1), dim3(64), 16, nullptr, 16);
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
    glmlite::cuda_host::recover();
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
  }
}

RUN_TESTS()
