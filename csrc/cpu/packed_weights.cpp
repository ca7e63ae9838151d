#include "packed_weights.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "../dequantize.h"
#include "../tensor_reader.h"
#include "pack.h"

namespace glmlite {

namespace {

constexpr uint64_t kTaskBytes = 2 << 20;  // of the file: what a thread reads and packs at a time

// With room for a smaller part of the experts they had better be mapped, as the system then keeps what it can.
constexpr size_t kLeastExperts = 32;

uint64_t bytes_of_tensors(const Program& program, const WeightPlan& plan) {
  uint64_t total = 0;
  for (const int i : plan.order()) total += program.weights[i].tensor->bytes;
  return total;
}

}  // namespace

// What a thread does at a time: panels [begin, end) of a matrix, values of a vector; `bytes` of the tensor from
// `offset` on, which become `packed_size` bytes at `packed_offset` of the layout.
struct PackedWeights::Task {
  int weight;
  int64_t begin, end;
  uint64_t offset, bytes;
  size_t packed_offset, packed_size;
};

PackedWeights::PackedWeights(const Program& program)
    : plan_(program, 64, packed_bytes),
      groups_(program.weights.size(), -1),
      matrices_(program.weights.size()),
      vectors_(program.weights.size()) {
  std::map<int, int> indices;
  for (const int i : plan_.order()) {
    const Weight& w = program.weights[i];
    const WeightPlan::Place& place = plan_.at(i);
    if (w.role != Role::kExperts || w.group < 0) {
      dense_bytes_ += bytes_of(program, i);
      continue;
    }
    const auto [found, is_new] = indices.emplace(w.group, static_cast<int>(group_begins_.size()));
    groups_[i] = found->second;
    if (is_new) {
      group_begins_.push_back(place.offset);
      group_counts_.push_back(w.count);
      group_strides_.push_back(place.stride);
      expert_bytes_ += place.stride * static_cast<size_t>(w.count);
    } else {
      size_t& begin = group_begins_[found->second];
      begin = std::min(begin, place.offset);
    }
  }
}

// As it lies in memory of its own.
size_t PackedWeights::bytes_of(const Program& program, int weight) const {
  return align64(plan_.at(weight).stride * static_cast<size_t>(program.weights[weight].count));
}

PackedFile::Identity PackedWeights::identity(const Program& program, const std::array<uint8_t, 32>& key) const {
  return {key, plan_.fingerprint(program), plan_.bytes()};
}

void PackedWeights::lies_at(const Program& program, int weight, const uint8_t* at) {
  const Weight& w = program.weights[weight];
  if (w.role == Role::kVector) {
    vectors_[weight] = reinterpret_cast<const float*>(at);
  } else {
    matrices_[weight] = {w.format, w.n, w.k, at};
  }
}

// Of each tensor so many that all threads have some.
std::vector<PackedWeights::Task> PackedWeights::tasks(const Program& program, int threads) const {
  std::vector<Task> tasks;
  for (const int i : plan_.order()) {
    const Weight& w = program.weights[i];
    const FormatInfo& info = format_info(w.format);
    const bool vector = w.role == Role::kVector;
    const uint64_t expert_bytes = w.tensor->bytes / static_cast<uint64_t>(w.count);
    const int64_t units = vector ? w.n / info.block_values : (w.n + kLanes - 1) / kLanes;  // blocks, or panels
    const uint64_t bytes =
        vector ? static_cast<uint64_t>(info.block_bytes) : expert_bytes / static_cast<uint64_t>(w.n) * kLanes;
    const size_t packed =
        vector ? sizeof(float) * static_cast<size_t>(info.block_values) : packed_bytes(w.format, kLanes, w.k);
    const int64_t values = vector ? info.block_values : 1;
    const int64_t share = vector ? units : (units * w.count + threads - 1) / threads;
    const int64_t step = std::min(share, std::max<int64_t>(1, static_cast<int64_t>(kTaskBytes / bytes)));
    for (int64_t expert = 0; expert < w.count; ++expert) {
      const size_t at = plan_.at(i).offset + plan_.at(i).stride * static_cast<size_t>(expert);
      for (int64_t begin = 0; begin < units; begin += step) {
        const int64_t end = std::min(begin + step, units);
        const uint64_t from = static_cast<uint64_t>(begin) * bytes;
        tasks.push_back({i, begin * values, end * values, static_cast<uint64_t>(expert) * expert_bytes + from,
                         std::min(static_cast<uint64_t>(end) * bytes, expert_bytes) - from,
                         at + static_cast<size_t>(begin) * packed, static_cast<size_t>(end - begin) * packed});
      }
    }
  }
  return tasks;
}

template <class Room, class Done>
void PackedWeights::pack(const Program& program, const std::vector<Task>& tasks, Team& team,
                         const LoadProgress& progress, Room room, Done done) const {
  uint64_t most = 0;
  for (const Task& task : tasks) most = std::max(most, task.bytes);
  const size_t buffer_bytes = align64(static_cast<size_t>(most));
  const Memory buffers(buffer_bytes * static_cast<size_t>(team.size()), "reading the file");
  TensorReader reader(team, bytes_of_tensors(program, plan_), progress);
  reader.report();
  reader.run([&](int thread) {
    uint8_t* rows = buffers.data() + buffer_bytes * static_cast<size_t>(thread);
    for (int64_t i; team.take(static_cast<int64_t>(tasks.size()), &i);) {
      const Task& task = tasks[static_cast<size_t>(i)];
      const Weight& w = program.weights[task.weight];
      uint8_t* to = room(thread, task);
      reader.read(thread, *w.tensor, task.offset, task.bytes, rows);
      if (w.role == Role::kVector) {
        dequantize_row(w.format, rows, task.end - task.begin, reinterpret_cast<float*>(to));
      } else {
        pack_panels(w.format, rows, w.n, w.k, task.begin, task.end, to);
      }
      done(task, to);
    }
  });
  reader.report();
}

void PackedWeights::load(const Program& program, Team& team, const LoadProgress& progress) {
  memory_ = Memory(plan_.bytes(), "weights");
  for (const int i : plan_.order()) lies_at(program, i, memory_.data() + plan_.at(i).offset);
  pack(
      program, tasks(program, team.size()), team, progress,
      [&](int, const Task& task) { return memory_.data() + task.packed_offset; }, [](const Task&, const uint8_t*) {});
}

void PackedWeights::write(const Program& program, const Output& output, uint64_t begin, Team& team,
                          const LoadProgress& progress) const {
  output.resize(begin + plan_.bytes());
  const std::vector<Task> tasks = this->tasks(program, team.size());
  size_t most = 0;
  for (const Task& task : tasks) most = std::max(most, task.packed_size);
  const Memory buffers(align64(most) * static_cast<size_t>(team.size()), "packing the weights");
  pack(
      program, tasks, team, progress,
      [&](int thread, const Task&) { return buffers.data() + align64(most) * static_cast<size_t>(thread); },
      [&](const Task& task, const uint8_t* from) { output.write(begin + task.packed_offset, task.packed_size, from); });
}

void PackedWeights::check(const Program& program, const PackedFile& file) const {
  if (!(identity(program, file.identity().key) == file.identity()))
    throw std::invalid_argument("packed: " + file.file().path() + " is of another program");
}

void PackedWeights::map(const Program& program, const PackedFile& file) {
  check(program, file);
  mapping_ = Mapping(file.file());
  for (const int i : plan_.order()) lies_at(program, i, mapping_.data() + file.begin() + plan_.at(i).offset);
  if (plan_.bytes() < available_memory()) ahead_ = std::make_unique<ReadAhead>(mapping_);
}

// Into memory of their own.
void PackedWeights::read(const Program& program, const std::vector<int>& weights, const PackedFile& file, Team& team,
                         const LoadProgress& progress) {
  struct Piece {
    size_t from, bytes, to;
  };
  std::vector<Piece> pieces;
  size_t size = 0;
  for (const int i : weights) {
    const size_t bytes = bytes_of(program, i);
    for (size_t at = 0; at < bytes; at += kTaskBytes)
      pieces.push_back({plan_.at(i).offset + at, std::min<size_t>(kTaskBytes, bytes - at), size + at});
    size += bytes;
  }
  memory_ = Memory(size, "weights");
  size = 0;
  for (const int i : weights) {
    lies_at(program, i, memory_.data() + size);
    size += bytes_of(program, i);
  }
  TensorReader reader(team, size, progress);
  reader.report();
  reader.run([&](int thread) {
    for (int64_t i; team.take(static_cast<int64_t>(pieces.size()), &i);) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      reader.read(thread, file.file(), file.begin() + piece.from, piece.bytes, memory_.data() + piece.to);
    }
  });
  reader.report();
}

void PackedWeights::stream(const Program& program, const PackedFile& file, size_t room, Team& team,
                           const LoadProgress& progress) {
  check(program, file);
  std::vector<int> chosen;
  if (expert_bytes_ > 0 && room >= dense_bytes_ + expert_bytes_ / kLeastExperts) {
    for (const int i : plan_.order())
      if (groups_[i] < 0) chosen.push_back(i);
    read(program, chosen, file, team, progress);
    for (const int i : plan_.order())
      if (groups_[i] >= 0) lies_at(program, i, nullptr);  // wherever its slot is
    std::vector<ExpertSlots::Group> groups;
    for (size_t g = 0; g < group_begins_.size(); ++g)
      groups.push_back({file.begin() + group_begins_[g], group_strides_[g], group_counts_[g]});
    slots_ = std::make_unique<ExpertSlots>(file, groups, room - dense_bytes_);
    return;
  }
  map(program, file);
  std::vector<bool> multiplied(program.weights.size());  // of an embedding's table a step reads some rows
  for (const Op& op : program.ops)
    if (!op.is<ops::Embed>()) each_weight(op, [&](int i) { multiplied[i] = true; });
  for (const int i : plan_.order()) {
    const size_t bytes = bytes_of(program, i);
    if (groups_[i] >= 0 || !multiplied[i] || bytes > room) continue;
    chosen.push_back(i);
    room -= bytes;
  }
  read(program, chosen, file, team, progress);
}

}  // namespace glmlite
