#include "plan.h"

#include <algorithm>
#include <stdexcept>

#include "../errors.h"

namespace glmlite::cuda {

int64_t context_bound(int64_t context) {
  int64_t bound = 256;
  while (bound < context) bound *= 2;
  return bound;
}

Plan::Plan(const Program& program, int64_t pages, KvType kv_type) : pages_(pages), vocab_(program.vocab) {
  for (const Op& op : program.ops) {
    if (op.kind == OpKind::kLinear && op.w.size() > kMaxParts)
      throw std::invalid_argument(op.text + ": " + std::to_string(op.w.size()) + " matrices, the GPU takes " +
                                  std::to_string(kMaxParts) + " at most");
    if (op.kind == OpKind::kAttention && op.head_dim > kMaxHeadDim)
      throw std::invalid_argument(op.text + ": heads of " + std::to_string(op.head_dim) + ", the GPU takes " +
                                  std::to_string(kMaxHeadDim) + " at most");
    if (op.kind == OpKind::kInput) input_width_ = op.width;
  }
  plan_weights(program);
  plan_cache(program, kv_type);
  std::vector<ValueInfo> lives = program.values;
  with_next.assign(program.ops.size(), false);
  for (size_t i = 0; i + 1 < program.ops.size(); ++i) {
    const Op &op = program.ops[i], &next = program.ops[i + 1];
    if (next.x != op.out || (i > 0 && with_next[i - 1])) continue;
    const bool gated = op.kind == OpKind::kLinear && next.kind == OpKind::kSwiglu && lives[op.out].last_use == next.out;
    const bool norms = op.kind == OpKind::kRmsNorm && next.kind == OpKind::kRmsNorm;
    if (!gated && !norms) continue;
    with_next[i] = true;
    for (const int read : {op.x, op.add})  // until the next one's result has been written
      if (read >= 0) lives[read].last_use = std::max(lives[read].last_use, next.out);
  }
  buffers = plan_buffers(
      lives, [](int64_t width) { return static_cast<size_t>(width) * sizeof(float); },
      [](int64_t width) { return act_bytes(width, 1); });
}

void Plan::plan_weights(const Program& program) {
  std::map<std::string, Item> all;
  const auto add = [&](const Tensor* t, bool matrix) {
    if (!t) return;
    const Item& item = all.insert({t->name, {t, matrix, 0}}).first->second;
    if (item.matrix != matrix) throw FormatError("'" + t->name + "' is used both as a matrix and as a vector");
  };
  for (const Op& op : program.ops) {
    for (const Tensor* t : op.w) add(t, op.kind == OpKind::kEmbed || op.kind == OpKind::kLinear);
    for (const Tensor* t : op.positions) add(t, true);
    for (const Tensor* t : op.bias) add(t, false);
    add(op.q_norm, false);
    add(op.k_norm, false);
  }
  for (const auto& named : all) items.push_back(named.second);
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return lies_before(*a.tensor, *b.tensor); });
  for (Item& item : items) {
    const Tensor& t = *item.tensor;
    item.offset = weight_bytes;
    offsets_[t.name] = weight_bytes;
    weight_bytes += align256(item.matrix ? packed_bytes(t.format, t.shape[0], t.shape[1])
                                         : static_cast<size_t>(t.shape[0]) * sizeof(float));
  }
  for (const RopeTable& r : program.ropes) {
    rope_offsets.push_back(weight_bytes);
    pairs_.push_back(r.first.size());
    weight_bytes += align256(r.freq.size() * sizeof(double)) + 3 * align256(r.first.size() * sizeof(int32_t));
  }
}

void Plan::plan_cache(const Program& program, KvType kv_type) {
  for (const Op& op : program.ops) {
    if (op.kind != OpKind::kAttention) continue;
    attentions.push_back({op.heads, op.kv_heads, op.head_dim});
    cache_offsets.push_back(kv_bytes);
    cache_page_bytes.push_back(kv_page_bytes(kv_type, op.kv_heads, op.head_dim));
    kv_bytes += align256(cache_page_bytes.back() * static_cast<size_t>(pages_));
  }
}

size_t Plan::partial_bytes(int64_t tokens, int64_t context) const {
  size_t bytes = 0;
  for (const AttentionShape& a : attentions)
    bytes = std::max(bytes, attention_partial_bytes(a.heads, a.kv_heads, a.head_dim, tokens, tokens, context));
  return bytes;
}

Plan::StepSize Plan::largest() const {
  const int64_t room = pages_ * kPageTokens, context = context_bound(room), tokens = std::min(kStepTokens, room);
  StepSize size{tokens, kStepRows, kStepRows, 0, 0};
  for (int64_t t = 1; t <= tokens; ++t) size.partials = std::max(size.partials, partial_bytes(t, context));
  // Per token: its six numbers, its flag, at most one tile for each kind of attention; per row its token, and what is
  // drawn from it; the pages of as many sequences as a graph can have.
  const int64_t tables = std::min(kGraphTokens, tokens) * (context / kPageTokens);
  size.upload =
      align256(static_cast<size_t>(tokens * (7 + 2 * 2) + 2 * kStepRows + tables + 16 * 64) * sizeof(int32_t)) +
      align256(kStepRows * (sizeof(Drawing::Row) + kMaxAdjustments * sizeof(Adjustment))) +
      align256(static_cast<size_t>(tokens * input_width_) * sizeof(float));
  return size;
}

Plan::Scratch Plan::scratch(const StepSize& size) const {
  Scratch s;
  size_t at = align256(size.upload);
  for (const size_t pairs : pairs_) {
    s.turns.push_back(at);
    at += align256(2 * pairs * static_cast<size_t>(size.tokens) * sizeof(float));
  }
  s.partials = s.draws = at;
  at += align256(std::max(size.partials, draw_bytes(vocab_, size.draws)));
  for (const Buffer& buffer : buffers.buffers) {
    s.buffers.push_back(at);
    at += align256(buffer.row_bytes * static_cast<size_t>(buffer.selected ? size.rows : size.tokens));
  }
  s.bytes = at;
  return s;
}

}  // namespace glmlite::cuda
