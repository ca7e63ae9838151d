#include "products.h"

#include <cstring>

#include "pack.h"

namespace glmlite {

namespace {

constexpr int64_t kPieceValues = 1 << 17;
constexpr size_t kAheadBytes = 256 << 10;  // of weights that a waiting thread fetches: a part of its cache

}  // namespace

Products::Products(const Program& program, const CpuKernels& kernels, const PackedWeights& weights,
                   const StepBuffers& buffers, Team& team)
    : program_(program),
      kernels_(kernels),
      weights_(weights),
      buffers_(buffers),
      team_(team),
      next_product_(program.ops.size() + 1, -1) {
  for (size_t i = program.ops.size(); i-- > 0;) {
    const Op& op = program.ops[i];
    const bool product = op.is<ops::Linear>() || op.is<ops::HeadLinear>() || op.is<ops::Moe>();
    next_product_[i] = product ? static_cast<int>(i) : next_product_[i + 1];
    if (const auto* kind = op.as<ops::HeadLinear>())
      head_columns_ = std::max(head_columns_, program.weights[kind->w].k);
  }
}

size_t Products::scratch_bytes(int64_t tokens) const {
  const size_t piece = static_cast<size_t>(std::max(kPieceValues, 2 * kUnitPanels * kLanes * tokens)) * sizeof(float);
  const size_t head = align64(static_cast<size_t>(tokens * head_columns_) * sizeof(float)) +
                      static_cast<size_t>(act_bytes(head_columns_, tokens));
  return align64(linear_scratch_bytes(tokens)) + std::max(piece, head);
}

int64_t Products::panels_of(const ops::Linear& kind) const {
  int64_t panels = 0;
  for (const int w : kind.w) panels += weights_.matrix(w).panel_count();
  return panels;
}

Ahead Products::ahead(const Packed& w, int64_t first, int64_t count) {
  const size_t size = packed_bytes(w.format, w.n, w.k), bytes = size / static_cast<size_t>(w.panel_count());
  const uint8_t* begin = w.panels + static_cast<size_t>(first) * bytes;
  return {begin, std::min(w.panels + size, begin + std::min(static_cast<size_t>(count) * bytes, kAheadBytes))};
}

// What a thread begins the product with, as far as that is known after op `done`.
Ahead Products::beginning(const Op& product, int done, int thread) const {
  if (const auto* kind = product.as<ops::Linear>()) {
    const int64_t panels = panels_of(*kind) / (buffers_.with_next(product.out) == Pair::kGated ? 2 : 1);
    int64_t first = thread * first_panels(panels);
    for (const int index : kind->w) {
      const Packed& w = weights_.matrix(index);
      if (first < w.panel_count()) return ahead(w, first, first_panels(panels));
      first -= w.panel_count();
    }
  }
  if (const auto* kind = product.as<ops::HeadLinear>()) {
    const Packed& w = weights_.matrix(kind->w);
    const int64_t panels = program_.weights[kind->w].count * w.panel_count(), first = thread * first_panels(panels);
    return ahead(weights_.expert(kind->w, first / w.panel_count()), first % w.panel_count(), first_panels(panels));
  }
  const auto* moe = product.as<ops::Moe>();
  if (moe && buffers_.tokens() == 1 && done >= moe->routing && !weights_.slots()) {
    const int64_t panels = weights_.matrix(moe->gate_up[0]).panel_count() / (moe->gate_up.size() == 1 ? 2 : 1);
    const int64_t first = thread * first_panels(moe->used * panels);
    const auto expert = static_cast<int64_t>(buffers_.value(moe->routing)[first / panels]);
    return ahead(weights_.expert(moe->gate_up[0], expert), first % panels, panels);
  }
  return {};
}

void Products::wait_after(int op, int thread) {
  if (buffers_.tokens() > kMemoryBoundRows) return team_.barrier();
  NextWeights& next = next_weights_[thread];
  const int product = next_product_[op + 1];
  if (next.op != product) {
    next = {};
    if (product >= 0) static_cast<Ahead&>(next) = beginning(program_.ops[product], op, thread);
    if (next.begin) next.op = product;
  }
  team_.barrier(&next);
}

void Products::wait(Ahead next) { team_.barrier(buffers_.tokens() > kMemoryBoundRows ? nullptr : &next); }

LinearArgs Products::arguments(const Packed& w, const Activations& act, int64_t rows, int64_t begin, int64_t end,
                               float* y, int64_t stride, int thread) const {
  LinearArgs args;
  args.panels = w.panels;
  args.k = w.k;
  args.n = w.n;
  args.panel_begin = begin;
  args.panel_end = end;
  args.act = act;
  args.tokens = rows;
  args.y = y;
  args.y_stride = stride;
  args.scratch = buffers_.scratch(thread);
  return args;
}

// The op's panels [begin, end), counted over all of its matrices: column c of its result goes to y[t * stride + c -
// first].
void Products::multiply(const Op& op, const ops::Linear& kind, const Activations& act, int64_t begin, int64_t end,
                        float* y, int64_t stride, int64_t first, int thread) {
  int64_t column = 0;
  for (size_t i = 0; i < kind.w.size(); ++i) {
    const Packed& w = weights_.matrix(kind.w[i]);
    const int64_t from = std::max<int64_t>(begin, 0), to = std::min(end, w.panel_count());
    if (from < to) {
      LinearArgs args = arguments(w, act, buffers_.rows(op.out), from, to, y + (column - first), stride, thread);
      if (!kind.bias.empty()) args.bias = weights_.vector(kind.bias[i]);
      if (kind.add >= 0) {
        args.add = buffers_.value(kind.add) + column;
        args.add_stride = op.width;
        args.alpha = kind.alpha;
      }
      kernels_.linear[static_cast<int>(w.format)](args);
    }
    begin -= w.panel_count();
    end -= w.panel_count();
    column += w.n;
  }
}

void Products::linear(const Op& op, const ops::Linear& kind, int thread) {
  const Activations act = buffers_.activations(kind.x, thread);
  share_panels(thread, panels_of(kind), [&](int64_t begin, int64_t end) {
    multiply(op, kind, act, begin, end, buffers_.value(op.out), op.width, 0, thread);
  });
}

// Calls work(begin, end) for parts of the panels [from, to), of which those of two matrices make 512 KB of results, or
// that are one tile wide: narrower tiles are half as fast, which costs more than results that leave the cache.
template <class Work>
void Products::each_piece(int64_t rows, int64_t from, int64_t to, Work work) {
  const int64_t panels = kPieceValues / (2 * kLanes * rows) / kUnitPanels * kUnitPanels;
  const int64_t step = std::max(kUnitPanels, std::min(to - from, panels));
  for (int64_t begin = from; begin < to; begin += step) work(begin, std::min(begin + step, to));
}

float* Products::piece(int thread) const {
  return reinterpret_cast<float*>(buffers_.scratch(thread) + align64(linear_scratch_bytes(buffers_.tokens())));
}

void Products::swiglu_rows(const float* piece, int64_t rows, int64_t columns, float* y, int64_t stride) const {
  for (int64_t t = 0; t < rows; ++t) kernels_.swiglu(piece + t * 2 * columns, y + t * stride, columns);
}

void Products::linear_swiglu(const Op& op, const ops::Linear& kind, const Op& next, int thread) {
  const int64_t rows = buffers_.rows(op.out), panels = next.width / kLanes;
  float* piece = this->piece(thread);
  const Activations act = buffers_.activations(kind.x, thread);
  share_panels(thread, panels, [&](int64_t from, int64_t to) {
    each_piece(rows, from, to, [&](int64_t begin, int64_t end) {
      const int64_t columns = (end - begin) * kLanes;
      multiply(op, kind, act, begin, end, piece, 2 * columns, begin * kLanes, thread);
      multiply(op, kind, act, panels + begin, panels + end, piece + columns, 2 * columns, (panels + begin) * kLanes,
               thread);
      swiglu_rows(piece, rows, columns, buffers_.value(next.out) + begin * kLanes, next.width);
    });
  });
}

void Products::gated(const Packed& gate, const Packed& up, int64_t up_begin, int64_t n, const Activations& act,
                     int64_t rows, int64_t from, int64_t to, float* y, int64_t stride, int thread) const {
  float* piece = this->piece(thread);
  each_piece(rows, from, to, [&](int64_t begin, int64_t end) {
    const int64_t columns = std::min(end * kLanes, n) - begin * kLanes;
    const auto product = [&](const Packed& w, int64_t first, float* y) {
      kernels_.linear[static_cast<int>(w.format)](
          arguments(w, act, rows, first, first + end - begin, y - first * kLanes, 2 * columns, thread));
    };
    product(gate, begin, piece);
    product(up, up_begin + begin, piece + columns);
    swiglu_rows(piece, rows, columns, y + begin * kLanes, stride);
  });
}

void Products::head_linear(const Op& op, const ops::HeadLinear& kind, int thread) {
  const int64_t rows = buffers_.rows(op.out), x_width = program_.values[kind.x].width;
  const Weight& w = program_.weights[kind.w];
  const int64_t panels = (w.n + kLanes - 1) / kLanes, from_stride = w.k + kind.keep, to_stride = w.n + kind.keep;
  const bool quantized = format_info(w.format).block_values > 1;
  uint8_t* own = buffers_.scratch(thread) + align64(linear_scratch_bytes(buffers_.tokens()));
  auto* x = reinterpret_cast<float*>(own);
  uint8_t* blocks = own + align64(static_cast<size_t>(buffers_.tokens() * w.k) * sizeof(float));
  share_panels(thread, w.count * panels, [&](int64_t from, int64_t to) {
    for (int64_t begin = from, end; begin < to; begin = end) {
      const int64_t head = begin / panels;
      end = std::min(to, (head + 1) * panels);
      const float* source = buffers_.value(kind.x) + head * from_stride;
      float* y = buffers_.value(op.out) + head * to_stride;
      for (int64_t t = 0; t < rows; ++t)
        std::memcpy(x + t * w.k, source + t * x_width, static_cast<size_t>(w.k) * sizeof(float));
      if (quantized) kernels_.quantize(x, w.k, 0, rows, rows, blocks);
      kernels_.linear[static_cast<int>(w.format)](arguments(weights_.expert(kind.w, head), {x, blocks}, rows,
                                                            begin - head * panels, end - head * panels, y, op.width,
                                                            thread));
      if (end < (head + 1) * panels) continue;
      for (int64_t t = 0; t < rows; ++t)
        std::memcpy(y + t * op.width + w.n, source + t * x_width + w.k, static_cast<size_t>(kind.keep) * sizeof(float));
    }
  });
}

}  // namespace glmlite
