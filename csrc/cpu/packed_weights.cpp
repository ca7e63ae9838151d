#include "packed_weights.h"

#include <algorithm>

#include "../dequantize.h"
#include "../tensor_reader.h"
#include "pack.h"
#include "team.h"

namespace glmlite {

namespace {

constexpr uint64_t kTaskBytes = 2 << 20;  // of the file: what a thread reads and packs at a time

// What a thread does at a time: panels [begin, end) of a matrix, values of a vector; `bytes` of the tensor.
struct Task {
  int weight;
  int64_t expert;
  int64_t begin, end;
  uint64_t offset, bytes;
};

// A tensor's share of the work, so that all threads have some of it.
void add_tasks(const Weight& w, int index, int threads, std::vector<Task>* tasks) {
  const FormatInfo& info = format_info(w.format);
  int64_t units, share, values = 1;  // panels or blocks; those of a task; values of one
  uint64_t bytes;                    // of one
  const uint64_t expert_bytes = w.tensor->bytes / static_cast<uint64_t>(w.count);
  if (w.role == Role::kVector) {
    values = info.block_values;
    share = units = w.n / values;
    bytes = static_cast<uint64_t>(info.block_bytes);
  } else {
    units = (w.n + kLanes - 1) / kLanes;
    share = (units * w.count + threads - 1) / threads;
    bytes = expert_bytes / static_cast<uint64_t>(w.n) * kLanes;
  }
  const int64_t step = std::min(share, std::max<int64_t>(1, static_cast<int64_t>(kTaskBytes / bytes)));
  for (int64_t expert = 0; expert < w.count; ++expert) {
    for (int64_t begin = 0; begin < units; begin += step) {
      const int64_t end = std::min(begin + step, units);
      const uint64_t from = static_cast<uint64_t>(begin) * bytes;
      tasks->push_back({index, expert, begin * values, end * values,
                        static_cast<uint64_t>(expert) * expert_bytes + from,
                        std::min(static_cast<uint64_t>(end) * bytes, expert_bytes) - from});
    }
  }
}

}  // namespace

PackedWeights::PackedWeights(const Program& program) : plan_(program, 64, packed_bytes) {}

void PackedWeights::load(const Program& program, Team& team, const LoadProgress& progress) {
  memory_ = Memory(plan_.bytes(), "weights");
  std::vector<Task> tasks;
  uint64_t total = 0, most = 0;
  matrices_.resize(program.weights.size());
  vectors_.resize(program.weights.size());
  for (const int i : plan_.order()) {
    const Weight& w = program.weights[i];
    total += w.tensor->bytes;
    const uint8_t* at = memory_.data() + plan_.at(i).offset;
    if (w.role == Role::kVector) {
      vectors_[i] = reinterpret_cast<const float*>(at);
    } else {
      matrices_[i] = {w.format, w.n, w.k, at};
    }
    add_tasks(w, i, team.size(), &tasks);
  }
  for (const Task& task : tasks) most = std::max(most, task.bytes);
  const size_t buffer_bytes = (static_cast<size_t>(most) + 63) / 64 * 64;
  const Memory buffers(buffer_bytes * static_cast<size_t>(team.size()), "reading the file");
  TensorReader reader(team, total, progress);
  reader.report();
  reader.run([&](int thread) {
    uint8_t* rows = buffers.data() + buffer_bytes * static_cast<size_t>(thread);
    for (int64_t i; team.take(static_cast<int64_t>(tasks.size()), &i);) {
      const Task& task = tasks[static_cast<size_t>(i)];
      const Weight& w = program.weights[task.weight];
      const WeightPlan::Place& place = plan_.at(task.weight);
      uint8_t* at = memory_.data() + place.offset + static_cast<size_t>(task.expert) * place.stride;
      reader.read(thread, *w.tensor, task.offset, task.bytes, rows);
      if (w.role == Role::kVector) {
        dequantize_row(w.format, rows, task.end - task.begin, reinterpret_cast<float*>(at) + task.begin);
      } else {
        pack_panels(w.format, rows, w.n, w.k, task.begin, task.end, at);
      }
    }
  });
  reader.report();
}

}  // namespace glmlite
