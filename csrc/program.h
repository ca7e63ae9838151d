// A recorded model: the flat list of ops that an executor runs once per step, checked against the file's tensors.
#pragma once
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "gguf.h"
#include "op_spec.h"
#include "ops/ops.h"

namespace glmlite {

// What a tensor is to the ops that name it, and so how a device keeps it.
enum class Role {
  kMatrix,   // (n, k), packed
  kVector,   // (n), as f32
  kExperts,  // (count, n, k): each packed like a matrix
  kPrefix    // (n, k), written into the KV cache (Program::prefix_values)
};

struct Weight {
  const Tensor* tensor = nullptr;  // of the file, while it is held
  Role role = Role::kMatrix;
  Format format = Format::kF32;
  int64_t count = 1, n = 0, k = 0;
  int group = -1;  // experts: those of one group lie together, expert by expert
};

// An op of the list, checked. Its index is the id of the value it makes.
struct Op {
  OpKind kind;
  std::string text;  // for messages: "linear %12 'blk.0.attn_qkv.weight'"
  int out = 0;
  int64_t width = 0;  // columns of its value

  template <class Kind>
  const Kind* as() const {
    return std::get_if<Kind>(&kind);
  }
  template <class Kind>
  bool is() const {
    return std::holds_alternative<Kind>(kind);
  }
};

// Calls fn(reference) for each of the members, numbers or lists of numbers, that are not -1.
template <class Kind, class Members, class Fn>
void each_member(Kind& kind, const Members& members, Fn fn) {
  const auto filled = [&](auto& number) {
    if (number >= 0) fn(number);
  };
  const auto visit = [&](auto& member) {
    if constexpr (std::is_integral_v<std::decay_t<decltype(member)>>) {
      filled(member);
    } else {
      for (auto& number : member) filled(number);
    }
  };
  std::apply([&](auto... member) { (visit(kind.*member), ...); }, members);
}

// Calls fn(id) for each value that the op reads; of an op that is not const, with a reference.
template <class AnyOp, class Fn>
void each_input(AnyOp& op, Fn fn) {
  std::visit([&](auto& kind) { each_member(kind, kind.inputs(), fn); }, op.kind);
}

// Likewise, for the index of each of its weights.
template <class AnyOp, class Fn>
void each_weight(AnyOp& op, Fn fn) {
  std::visit([&](auto& kind) { each_member(kind, kind.weights(), fn); }, op.kind);
}

struct ValueInfo {
  int64_t width = 0;
  bool selected = false;   // has a row per token whose logits are wanted, not per token of the step
  bool quantized = false;  // some op multiplies it with quantized weights
  int last_use = -1;       // index of the last op that reads it
};

class Program {
 public:
  // Throws FormatError for tensors that are missing, have the wrong shape or a type without kernels, and
  // std::invalid_argument for ops that the recorder would not make. Keeps pointers into `file`, whose Contents must be
  // held while they are used.
  Program(const Gguf& file, const std::vector<OpSpec>& specs);

  // The program in two parts, of which the second has the last `layers` attention ops, 0 < layers < caches. It begins
  // with an input, whose rows are the first part's last value: op i of the second part is op i + seam of the whole,
  // seam = first.ops.size() - 1. Throws std::invalid_argument where more than one value would have to go across.
  std::pair<Program, Program> split(int layers) const;
  // Index of the op with which the last `layers` attention ops, and what belongs to them, begin; see `split`.
  size_t seam(int layers) const;
  // Bytes of the file's distinct tensors that the ops name.
  uint64_t file_bytes() const;
  // The prefix, read from the file: keys, then values, of each attention op, (prefix, kv_heads * head_dim) each.
  std::vector<float> prefix_values() const;
  // How many KV caches the program has: one for each attention, or one for all that keep nothing and are alike.
  int layers() const { return static_cast<int>(caches.size()); }
  // Whether the last value has a row for each row of logits that is asked for, or for each token.
  bool selects() const { return values.back().selected; }

  std::vector<Op> ops;
  std::vector<ValueInfo> values;   // by value id
  std::vector<Weight> weights;     // distinct tensors
  std::vector<RopeTable> ropes;    // distinct ones
  std::vector<CacheShape> caches;  // of attentions, in the order of the program
  int64_t vocab = 0;               // width of the last value, the logits
  int64_t tokens = 0;              // rows of the embedding table: token ids are below; 0: there is none
  int64_t input = 0;               // columns of the rows that a step is given; 0: none
  bool keeps = true;               // whether attention sees what a sequence read in earlier steps
  int64_t prefix = 0;              // entries that stand before every sequence (P-Tuning v2)
  int64_t axis_limit[kAxes];       // positions of axis a must be below this (learned tables end)

 private:
  void keep_used_weights();
};

}  // namespace glmlite
