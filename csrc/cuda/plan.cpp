#include "plan.h"

#include <algorithm>
#include <stdexcept>

namespace glmlite::cuda {

int64_t context_bound(int64_t context) {
  int64_t bound = 256;
  while (bound < context) bound *= 2;
  return bound;
}

Plan::Plan(const Program& program, int64_t pages, KvType kv_type)
    : weights(program, 256, packed_bytes),
      fusion(program, [](Pair, const Op&, const Op&) { return true; }),
      buffers(plan_buffers(
          places_of(fusion.values), [](int64_t width) { return static_cast<size_t>(width) * sizeof(float); },
          [](int64_t width) { return act_bytes(width, 1); })),
      pages_(pages),
      vocab_(program.vocab) {
  for (const Op& op : program.ops) check(op);
  for (const Op& op : program.ops) {
    const bool input = op.is<ops::Input>();
    inputs.push_back(input ? inputs_++ : -1);
    if (input) input_width_ += op.width;
  }
  weight_bytes = weights.bytes();
  plan_ropes(program);
  plan_cache(program, kv_type);
}

// Throws for what has no kernels.
void Plan::check(const Op& op) {
  const bool none = op.is<ops::HeadLinear>() || op.is<ops::LatentAttention>() || op.is<ops::Route>() ||
                    op.is<ops::Moe>() || op.is<ops::Concat>();
  if (none) throw std::invalid_argument(op.text + ": the GPU has no kernels for it, the CPU has");
  const auto* linear = op.as<ops::Linear>();
  if (linear && linear->w.size() > kMaxParts)
    throw std::invalid_argument(op.text + ": " + std::to_string(linear->w.size()) + " matrices, the GPU takes " +
                                std::to_string(kMaxParts) + " at most");
  const auto* attention = op.as<ops::Attention>();
  if (attention && attention->head_dim > kMaxHeadDim)
    throw std::invalid_argument(op.text + ": heads of " + std::to_string(attention->head_dim) + ", the GPU takes " +
                                std::to_string(kMaxHeadDim) + " at most");
}

void Plan::plan_ropes(const Program& program) {
  for (const RopeTable& r : program.ropes) {
    rope_offsets.push_back(weight_bytes);
    pairs_.push_back(r.first.size());
    weight_bytes += align256(r.freq.size() * sizeof(double)) + 3 * align256(r.first.size() * sizeof(int32_t));
  }
}

void Plan::plan_cache(const Program& program, KvType kv_type) {
  for (const Op& op : program.ops) {
    const auto* a = op.as<ops::Attention>();
    if (!a || a->cache < static_cast<int>(attentions.size())) continue;  // or shares it with one before
    attentions.push_back({a->heads, a->kv_heads, a->head_dim});
    cache_offsets.push_back(kv_bytes);
    cache_page_bytes.push_back(kv_page_bytes(kv_type, a->kv_heads, a->head_dim));
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
      align256(static_cast<size_t>(tokens * (5 + kAxes + 2 * 2) + 2 * kStepRows + tables + 16 * 64) * sizeof(int32_t)) +
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
    at += align256(buffer.row_bytes * static_cast<size_t>(buffer.room == Room::kSelected ? size.rows : size.tokens));
  }
  s.bytes = at;
  return s;
}

}  // namespace glmlite::cuda
