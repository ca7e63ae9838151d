// Programs on an NVIDIA GPU, or the last layers of one there and the rest on the CPU.
#pragma once
#include "../executor.h"

namespace glmlite::cuda {

// Bytes of a GPU's memory.
struct Need {
  int layers = 0;      // of the program
  int gpu_layers = 0;  // of them on the GPU
  size_t weights = 0, kv = 0, scratch = 0;
  size_t reserve = 0;  // left to CUDA itself: loaded kernels, graphs
  size_t total() const { return weights + kv + scratch + reserve; }
};
// What the last `gpu_layers` layers (-1: all) take, with so many pages of KV cache.
Need memory_needed(const Program& program, int64_t pages, KvType kv_type, int gpu_layers);
// The most layers whose need is at most `free`; 0 if none.
int layers_that_fit(const Program& program, int64_t pages, KvType kv_type, size_t free);

// An ExecutorFactory. Without a device: make_cpu_executor.
std::unique_ptr<Executor> make_executor(const Gguf& file, Program program, const ExecutorOptions& options,
                                        const LoadProgress& progress);

}  // namespace glmlite::cuda
