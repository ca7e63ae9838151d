// Programs on an NVIDIA GPU, or the last layers of one there and the rest on the CPU.
#pragma once
#include "../executor.h"

namespace glmlite::cuda {

// Bytes of a GPU's memory.
struct Need {
  int layers = 0;      // of the program
  int gpu_layers = 0;  // of them on the GPU
  size_t weights = 0, kv = 0, scratch = 0;
  size_t page = 0;     // of kv, in all of these layers
  size_t reserve = 0;  // left to CUDA itself: loaded kernels, graphs
  size_t total() const { return weights + kv + scratch + reserve; }
};
// What the last `gpu_layers` layers (-1: all) take, with so many pages of KV cache.
Need memory_needed(const Program& program, int64_t pages, KvType kv_type, int gpu_layers);
// The most layers whose need is at most `free`; 0 if none.
int layers_that_fit(const Program& program, int64_t pages, KvType kv_type, size_t free);

// Microseconds of a step of one token that sees `context` entries of whatever is in the cache, captured, the best of
// several: of each op on its own; of the step as it runs; of the step with each kernel launched when the one before has
// ended.
struct StepTimes {
  std::vector<std::pair<std::string, float>> ops;
  float ahead, in_turn;
};
StepTimes measure_step(Program program, const ExecutorOptions& options, int64_t context);

// An ExecutorFactory. Without a device: make_cpu_executor.
std::unique_ptr<Executor> make_executor(Program program, const ExecutorOptions& options, const LoadProgress& progress);

}  // namespace glmlite::cuda
