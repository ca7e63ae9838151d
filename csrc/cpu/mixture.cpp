#include "mixture.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

namespace glmlite {

namespace {

constexpr int64_t kTaskPanels = 16;  // of an expert, that a thread takes at a time where rows are many

bool is_quantized(const Weight& w) { return format_info(w.format).block_values > 1; }

// The `used` largest of scores + bias, of equal ones those with the lower index; then their weights. Whatever the
// scores are, NaN too, the indices differ and are below `experts`. order, biased: room for `experts` each.
void choose(const float* scores, const float* bias, int64_t experts, int used, float scale, int32_t* order,
            float* biased, float* chosen) {
  for (int64_t e = 0; e < experts; ++e) {
    biased[e] = bias ? scores[e] + bias[e] : scores[e];
    if (!(biased[e] == biased[e])) biased[e] = -std::numeric_limits<float>::infinity();
  }
  std::iota(order, order + experts, 0);
  std::partial_sort(order, order + used, order + experts,
                    [&](int32_t a, int32_t b) { return biased[a] != biased[b] ? biased[a] > biased[b] : a < b; });
  std::sort(order, order + used);
  float sum = 0;
  for (int i = 0; i < used; ++i) sum += scores[order[i]];
  for (int i = 0; i < used; ++i) {
    chosen[i] = static_cast<float>(order[i]);
    chosen[used + i] = scores[order[i]] / (sum + 1e-20f) * scale;
  }
}

}  // namespace

Mixture::Mixture(const Program& program, const CpuKernels& kernels, const PackedWeights& weights,
                 const StepBuffers& buffers, Products& products, Team& team)
    : program_(program), kernels_(kernels), weights_(weights), buffers_(buffers), products_(products), team_(team) {
  for (const Op& op : program.ops) {
    if (const auto* route = op.as<ops::Route>()) routed_ = std::max(routed_, program.weights[route->gate].n);
    if (const auto* moe = op.as<ops::Moe>()) {
      const int64_t columns = program.values[moe->x].width;
      experts_ = std::max(experts_, moe->count);
      used_ = std::max<int64_t>(used_, moe->used);
      columns_ = std::max(columns_, columns);
      for (const int w : moe->gate_up)
        if (!is_quantized(program.weights[w])) float_columns_ = std::max(float_columns_, columns);
      inner_ = std::max(inner_, moe->inner);
      width_ = std::max(width_, op.width);
    }
  }
}

Mixture::Rows Mixture::rows_at(uint8_t* begin, int64_t tokens, size_t* bytes) const {
  size_t at = 0;
  const auto take = [&](size_t size) {
    uint8_t* place = begin + at;
    at += align64(size);
    return place;
  };
  const auto floats = [&](int64_t count) {
    return reinterpret_cast<float*>(take(static_cast<size_t>(count) * sizeof(float)));
  };
  const int64_t slots = tokens * used_;
  Rows rows;
  rows.logits = floats(tokens * routed_);
  rows.x = floats(slots * float_columns_);
  rows.x_blocks = take(static_cast<size_t>(act_bytes(columns_, slots)));
  rows.inner = floats(slots * inner_);
  rows.inner_blocks = take(static_cast<size_t>(act_bytes(inner_, slots)));
  rows.y = floats(slots * width_);
  if (bytes) *bytes = at;
  return rows;
}

void Mixture::resize(int64_t tokens) {
  size_t bytes;
  rows_at(nullptr, tokens, &bytes);
  memory_.reset();
  memory_ = Memory(bytes, "the experts' rows of a step of " + std::to_string(tokens) + " tokens");
  rows_ = rows_at(memory_.data(), tokens, nullptr);
  const auto slots = static_cast<size_t>(tokens * used_);
  plans_.resize(static_cast<size_t>(team_.threads()));
  for (Plan& p : plans_) {  // so that nothing is allocated while threads run
    p.first.resize(static_cast<size_t>(experts_) + 1);
    p.rows.resize(slots);
    p.slots.resize(slots);
    p.busy.reserve(static_cast<size_t>(experts_));
  }
}

// What a product wants; then a row's choice, or the inner rows of a single token, which each thread rounds for itself.
size_t Mixture::scratch_bytes(int64_t tokens) const {
  return align64(products_.scratch_bytes(tokens)) +
         std::max(static_cast<size_t>(2 * routed_) * sizeof(float),
                  static_cast<size_t>(used_) * align64(static_cast<size_t>(act_bytes(inner_, 1))));
}

uint8_t* Mixture::own(int thread) const {
  return buffers_.scratch(thread) + align64(products_.scratch_bytes(buffers_.tokens()));
}

void Mixture::route(const Op& op, const ops::Route& kind, int thread) {
  const Packed& gate = weights_.matrix(kind.gate);
  const int64_t rows = buffers_.rows(op.out);
  const auto scores = [&](const Activations& act, int64_t count, int64_t begin, int64_t end, float* y) {
    kernels_.linear[static_cast<int>(gate.format)](
        products_.arguments(gate, act, count, begin, end, y, gate.n, thread));
  };
  const Activations act = buffers_.activations(kind.x, thread);
  const int64_t first = buffers_.first_row(thread, rows), last = buffers_.first_row(thread + 1, rows);
  // Rows of floats can be shared among the threads, so that none waits. A single row is shared by panels.
  if (!act.blocks && rows > 1) {
    if (first < last)
      scores({act.x + first * gate.k, nullptr}, last - first, 0, gate.panel_count(), rows_.logits + first * gate.n);
  } else {
    products_.share_panels(thread, gate.panel_count(),
                           [&](int64_t begin, int64_t end) { scores(act, rows, begin, end, rows_.logits); });
    products_.wait_after(op.out - 1, thread);  // nothing is routed yet
  }
  auto* order = reinterpret_cast<int32_t*>(own(thread));
  auto* biased = reinterpret_cast<float*>(order + gate.n);
  for (int64_t t = first; t < last; ++t) {
    float* row = rows_.logits + t * gate.n;
    kernels_.sigmoid(row, row, gate.n);
    choose(row, weights_.vector(kind.bias), gate.n, kind.used, kind.scale, order, biased,
           buffers_.value(op.out) + t * op.width);
  }
}

const Mixture::Plan& Mixture::plan(const ops::Moe& kind, int thread) {
  Plan& p = plans_[thread];
  const int64_t rows = buffers_.rows(kind.routing);
  const float* routing = buffers_.value(kind.routing);
  const auto each = [&](auto fn) {
    for (int64_t t = 0; t < rows; ++t)
      for (int i = 0; i < kind.used; ++i) fn(t, i, static_cast<int32_t>(routing[t * 2 * kind.used + i]));
  };
  std::fill_n(p.first.begin(), kind.count + 1, 0);
  each([&](int64_t, int, int32_t expert) { ++p.first[expert + 1]; });
  p.busy.clear();
  for (int32_t e = 0; e < kind.count; ++e) {
    if (p.first[e + 1] > 0) p.busy.push_back(e);
    p.first[e + 1] += p.first[e];
  }
  each([&](int64_t t, int i, int32_t expert) {
    const int32_t slot = p.first[expert]++;
    p.rows[slot] = static_cast<int32_t>(t);
    p.slots[t * kind.used + i] = slot;
  });
  std::copy_backward(p.first.begin(), p.first.begin() + kind.count, p.first.begin() + kind.count + 1);
  p.first[0] = 0;
  return p;
}

Activations Mixture::part(const float* x, const uint8_t* blocks, int64_t k, int64_t first) {
  return {x + first * k, blocks + act_bytes(k, first)};
}

template <class Work>
void Mixture::share(const Experts& experts, int64_t panels, int thread, Work work) {
  if (buffers_.tokens() > kMemoryBoundRows) {
    const int64_t parts = (panels + kTaskPanels - 1) / kTaskPanels;
    for (int64_t task; team_.take(experts.size() * parts, &task);) {
      const int64_t begin = task % parts * kTaskPanels;
      work(experts.begin[task / parts], begin, std::min(begin + kTaskPanels, panels));
    }
    return;
  }
  products_.share_panels(thread, experts.size() * panels, [&](int64_t from, int64_t to) {
    for (int64_t begin = from, end; begin < to; begin = end) {
      const int64_t index = begin / panels;
      end = std::min(to, (index + 1) * panels);
      work(experts.begin[index], begin - index * panels, end - index * panels);
    }
  });
}

// The rows of each expert, one after the other.
void Mixture::gather(const ops::Moe& kind, const Plan& plan, int thread) {
  const Activations act = buffers_.activations(kind.x, thread);
  const int64_t k = program_.values[kind.x].width, rows = buffers_.rows(kind.x);
  for (int64_t task; team_.take(static_cast<int64_t>(plan.busy.size()), &task);) {
    const int32_t expert = plan.busy[task], first = plan.first[expert];
    const int64_t count = plan.rows_of(expert);
    if (act.blocks)
      kernels_.gather(act.blocks, k, rows, plan.rows.data() + first, count, rows_.x_blocks + act_bytes(k, first));
    if (float_columns_ > 0)
      for (int64_t i = first; i < first + count; ++i)
        std::memcpy(rows_.x + i * k, act.x + plan.rows[i] * k, static_cast<size_t>(k) * sizeof(float));
  }
}

void Mixture::round_inner(const ops::Moe& kind, const Plan& plan, const Experts& experts) {
  for (int64_t task; team_.take(experts.size(), &task);) {
    const int32_t expert = experts.begin[task], first = plan.first[expert];
    const int64_t count = plan.rows_of(expert);
    kernels_.quantize(rows_.inner + first * kind.inner, kind.inner, 0, count, count,
                      rows_.inner_blocks + act_bytes(kind.inner, first));
  }
}

void Mixture::multiply(const Op& op, const ops::Moe& kind, const Plan& plan, const Experts& experts, int thread) {
  const int64_t k = program_.values[kind.x].width, panels = (kind.inner + kLanes - 1) / kLanes;
  const bool single = buffers_.rows(op.out) == 1, rounds = is_quantized(program_.weights[kind.down]);
  Activations x{};
  if (single) x = buffers_.activations(kind.x, thread);
  share(experts, panels, thread, [&](int32_t expert, int64_t begin, int64_t end) {
    const int32_t first = plan.first[expert];
    const Activations act = single ? x : part(rows_.x, rows_.x_blocks, k, first);
    const Packed gate = weights_.expert(kind.gate_up[0], expert), up = weights_.expert(kind.gate_up.back(), expert);
    products_.gated(gate, up, kind.gate_up.size() == 1 ? panels : 0, kind.inner, act, plan.rows_of(expert), begin, end,
                    rows_.inner + first * kind.inner, kind.inner, thread);
  });
  const int64_t down_panels = (op.width + kLanes - 1) / kLanes;
  const int64_t begins = thread * products_.first_panels((experts.end - experts.begin) * down_panels);
  products_.wait(Products::ahead(weights_.expert(kind.down, experts.begin[begins / down_panels]), begins % down_panels,
                                 down_panels));

  const uint8_t* blocks = rows_.inner_blocks;
  if (rounds && single) {
    uint8_t* mine = own(thread);
    for (const int32_t* expert = experts.begin; expert < experts.end; ++expert) {
      const int32_t slot = plan.first[*expert];
      kernels_.quantize(rows_.inner + slot * kind.inner, kind.inner, 0, 1, 1, mine + act_bytes(kind.inner, slot));
    }
    blocks = mine;
  } else if (rounds) {
    round_inner(kind, plan, experts);
    products_.wait_after(op.out, thread);
  }
  share(experts, down_panels, thread, [&](int32_t expert, int64_t begin, int64_t end) {
    const int32_t first = plan.first[expert];
    const Packed down = weights_.expert(kind.down, expert);
    kernels_.linear[static_cast<int>(down.format)](
        products_.arguments(down, part(rows_.inner, blocks, kind.inner, first), plan.rows_of(expert), begin, end,
                            rows_.y + first * op.width, op.width, thread));
  });
  products_.wait_after(op.out, thread);
}

void Mixture::run(const Op& op, const ops::Moe& kind, int thread) {
  const Plan& plan = this->plan(kind, thread);
  ExpertSlots* slots = weights_.slots();
  if (slots && thread == 0) slots->begin(weights_.group(kind.down), plan.busy);
  const bool gathers = buffers_.rows(op.out) > 1;
  if (gathers) gather(kind, plan, thread);
  if (gathers || slots) products_.wait_after(op.out, thread);
  if (slots) {
    for (int round = 0; round < slots->rounds(); ++round) {
      const ExpertSlots::Round experts = slots->round(round);
      slots->wait(round);
      multiply(op, kind, plan, {experts.begin, experts.end}, thread);
      if (thread == 0) slots->finish(round);
    }
  } else {
    multiply(op, kind, plan, {plan.busy.data(), plan.busy.data() + plan.busy.size()}, thread);
  }
  combine(op, kind, plan, thread);
}

// Of a single row the threads share the columns, of many the rows.
void Mixture::combine(const Op& op, const ops::Moe& kind, const Plan& plan, int thread) {
  const int64_t rows = buffers_.rows(op.out);
  const auto add = [&](int64_t t, int64_t begin, int64_t end) {
    float* y = buffers_.value(op.out) + t * op.width + begin;
    const auto bytes = static_cast<size_t>(end - begin) * sizeof(float);
    if (kind.add >= 0) {
      std::memcpy(y, buffers_.value(kind.add) + t * op.width + begin, bytes);
    } else {
      std::memset(y, 0, bytes);
    }
    const float* weights = buffers_.value(kind.routing) + t * 2 * kind.used + kind.used;
    for (int i = 0; i < kind.used; ++i)
      kernels_.add_scaled(y, rows_.y + plan.slots[t * kind.used + i] * op.width + begin, weights[i], end - begin);
  };
  if (rows == 1) return add(0, buffers_.first_row(thread, op.width), buffers_.first_row(thread + 1, op.width));
  buffers_.each_row(thread, rows, [&](int64_t t) { add(t, 0, op.width); });
}

}  // namespace glmlite
