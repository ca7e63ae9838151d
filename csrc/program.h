// A recorded model: the flat list of ops that an executor runs once per step, checked against the file's tensors.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gguf.h"

namespace glmlite {

// The turns of one head: pair i of columns turns by freq[i] * position[axis[i]] radians, scaled by `magnitude`.
struct RopeTable {
  std::vector<int32_t> first, second, axis;
  std::vector<double> freq;
  double magnitude = 1;
  bool operator==(const RopeTable& o) const {
    return first == o.first && second == o.second && axis == o.axis && freq == o.freq && magnitude == o.magnitude;
  }
};

// One op as Python recorded it (glmlite/program.py).
struct OpSpec {
  std::string kind;
  int out;
  int64_t width;
  std::map<std::string, int> inputs;
  std::map<std::string, std::vector<std::string>> weights;
  std::map<std::string, double> numbers;
  bool has_rope = false;
  RopeTable rope;
};

// An input has the rows that another part of the program made; only Program::split makes one.
enum class OpKind { kInput, kEmbed, kRmsNorm, kLayerNorm, kLinear, kAttention, kSwiglu, kGelu, kSelect };

// An op of the list, checked. Slots that an op does not have, or that are not filled, are -1, null or empty.
struct Op {
  OpKind kind;
  std::string text;                      // for messages: "linear %12 'blk.0.attn_qkv.weight'"
  int out;                               // value ids
  int x = -1;                            // what it reads
  int add = -1;                          // what it adds to its result
  int64_t width;                         // columns of `out`
  std::vector<const Tensor*> w;          // embed: the table; norms: the weight; linear: matrices, one below the other
  std::vector<const Tensor*> bias;       // layer_norm: one; linear: none, or one per matrix
  std::vector<const Tensor*> positions;  // embed: one table per position axis
  const Tensor* q_norm = nullptr;
  const Tensor* k_norm = nullptr;
  const Tensor* prefix_k = nullptr;
  const Tensor* prefix_v = nullptr;
  float eps = 0;
  float alpha = 1;
  float scale = 0;
  int heads = 0, kv_heads = 0, head_dim = 0;
  int cache = -1;  // attention: index of its KV cache, counted in the order of the program
  int rope = -1;   // attention: index into Program::ropes
};

struct ValueInfo {
  int64_t width = 0;
  bool selected = false;   // has a row per token whose logits are wanted, not per token of the step
  bool quantized = false;  // some linear with quantized weights reads it
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

  std::vector<Op> ops;
  std::vector<ValueInfo> values;  // by value id, which is the index of the op that makes it
  std::vector<RopeTable> ropes;   // distinct ones
  int64_t vocab = 0;              // width of the last value, the logits
  int64_t tokens = 0;             // rows of the embedding table: token ids are below
  int64_t prefix = 0;             // entries that stand before every sequence (P-Tuning v2)
  int64_t axis_limit[2];          // positions of axis a must be below this (learned tables end)
  int caches = 0;
  bool selects = false;  // has a select op: the logits' rows are those asked for
};

}  // namespace glmlite
