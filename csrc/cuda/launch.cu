// Which devices may start a kernel before those before it have ended.
#include <atomic>

#include "device.cuh"

namespace glmlite::cuda {

namespace {

__global__ void compiled_kernel() {}

// Where the kernels have the instructions, be it that they were compiled for it or are from PTX for sm_90, and the
// driver has such edges in graphs.
bool can_launch_ahead() {
  constexpr int kGraphEdges = 12030;
  int driver = 0;
  cudaFuncAttributes compiled{};
  check_launch(cudaDriverGetVersion(&driver));
  check_launch(cudaFuncGetAttributes(&compiled, compiled_kernel));
  return compiled.ptxVersion >= 90 && driver >= kGraphEdges && CUDART_VERSION >= kGraphEdges;
}

std::atomic<bool> allowed{true};

}  // namespace

bool launches_ahead() {
  constexpr int kDevices = 64;
  static std::atomic<int> can[kDevices];  // 0: not known yet, 1: no, 2: yes
  int device = 0;
  check_launch(cudaGetDevice(&device));
  if (!allowed || device >= kDevices) return false;
  if (can[device] == 0) can[device] = can_launch_ahead() ? 2 : 1;
  return can[device] == 2;
}

void allow_launching_ahead(bool allow) { allowed = allow; }

}  // namespace glmlite::cuda
