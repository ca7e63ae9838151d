// A program's weights as the kernels read them: matrices in panels, vectors in f32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../executor.h"
#include "../file.h"
#include "../memory.h"
#include "../packed_file.h"
#include "../weights.h"
#include "expert_slots.h"
#include "kernels.h"
#include "team.h"

namespace glmlite {

// A matrix in panels.
struct Packed {
  Format format;
  int64_t n, k;
  const uint8_t* panels;
  int64_t panel_count() const { return (n + kLanes - 1) / kLanes; }
};

class PackedWeights {
 public:
  explicit PackedWeights(const Program& program);

  size_t bytes() const { return plan_.bytes(); }
  // Of those that a mixture chooses among.
  size_t expert_bytes() const { return expert_bytes_; }
  // The program is the one that this was made with, here and below.
  PackedFile::Identity identity(const Program& program, const std::array<uint8_t, 32>& key) const;

  // One of these is called, once; then the program's tensors may go.
  // Reads the tensors, and packs them into memory. Throws FileError, OutOfMemory, Cancelled.
  void load(const Program& program, Team& team, const LoadProgress& progress);
  // Takes them as they lie in a file. Throws FileError; std::invalid_argument if it is another program's.
  void map(const Program& program, const PackedFile& file);
  // Reads as many as fit into `room` bytes of memory. Where that is all but the experts of mixtures, the rest of it is
  // for experts, which are read when they are asked for; if not, the others lie in the mapped file. Throws likewise,
  // and OutOfMemory, Cancelled.
  void stream(const Program& program, const PackedFile& file, size_t room, Team& team, const LoadProgress& progress);

  // Bytes that are in memory, or mapped.
  size_t held() const { return slots_ ? memory_.size() + slots_->bytes() : plan_.bytes(); }

  // Reads the tensors and writes them, packed, into a file, which ends with them. Throws FileError, OutOfMemory,
  // Cancelled.
  void write(const Program& program, const Output& output, uint64_t begin, Team& team,
             const LoadProgress& progress) const;

  // By index into Program::weights.
  const Packed& matrix(int weight) const { return matrices_[weight]; }
  const float* vector(int weight) const { return weight < 0 ? nullptr : vectors_[weight]; }
  Packed expert(int weight, int64_t index) const {
    Packed p = matrices_[weight];
    p.panels = slots_ && groups_[weight] >= 0 ? slots_->at(groups_[weight], index) + within(weight)
                                              : p.panels + static_cast<size_t>(index) * plan_.at(weight).stride;
    return p;
  }
  // Where the experts of mixtures are asked for; null where all are there.
  ExpertSlots* slots() const { return slots_.get(); }
  bool failed() const { return slots_ && slots_->failed(); }
  void rethrow() {
    if (slots_) slots_->rethrow();
  }
  int group(int weight) const { return groups_[weight]; }  // as the slots number them

 private:
  struct Task;
  std::vector<Task> tasks(const Program& program, int threads) const;
  // Reads and packs all tensors. room(thread, task): where what is packed goes; then done(thread, task).
  template <class Room, class Done>
  void pack(const Program& program, const std::vector<Task>& tasks, Team& team, const LoadProgress& progress, Room room,
            Done done) const;
  void check(const Program& program, const PackedFile& file) const;
  void read(const Program& program, const std::vector<int>& weights, const PackedFile& file, Team& team,
            const LoadProgress& progress);
  size_t bytes_of(const Program& program, int weight) const;
  void lies_at(const Program& program, int weight, const uint8_t* at);
  size_t within(int weight) const { return plan_.at(weight).offset - group_begins_[groups_[weight]]; }

  const WeightPlan plan_;
  size_t expert_bytes_ = 0, dense_bytes_ = 0;
  std::vector<int> groups_;            // by weight: index of the group of experts that it belongs to, or -1
  std::vector<size_t> group_begins_;   // by group: offset of its first expert
  std::vector<int64_t> group_counts_;  // of experts
  std::vector<size_t> group_strides_;
  Memory memory_;
  Mapping mapping_;
  std::unique_ptr<ReadAhead> ahead_;
  std::unique_ptr<ExpertSlots> slots_;
  std::vector<Packed> matrices_;  // of experts, the first
  std::vector<const float*> vectors_;
};

}  // namespace glmlite
