// Kernel entry points for tests: arrays go to the device, one kernel runs, its result comes back. What kernels write to
// begins as NaN.
#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../sampler.h"
#include "bind.h"
#include "kernels.h"
#include "pack.h"

namespace py = pybind11;

namespace glmlite::cuda {

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using Maybe = std::optional<Array<T>>;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Device memory, all bits set.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : count_(count) {
    check(cudaMalloc(&data_, bytes()));
    check(cudaMemset(data_, 0xff, bytes()));
  }
  Buffer(const T* from, int64_t count) : Buffer(count) {
    check(cudaMemcpy(data_, from, bytes(), cudaMemcpyHostToDevice));
  }
  explicit Buffer(const Array<T>& from) : Buffer(from.data(), from.size()) {}
  explicit Buffer(const Maybe<T>& from) {
    if (from) *this = Buffer(*from);
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(Buffer&& o) noexcept : data_(o.data_), count_(o.count_) { o.data_ = nullptr; }
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(count_, o.count_);
    return *this;
  }
  T* get() const { return data_; }
  void read(T* to) const { check(cudaMemcpy(to, data_, bytes(), cudaMemcpyDeviceToHost)); }
  Array<T> array(std::vector<py::ssize_t> shape) const {
    Array<T> a(std::move(shape));
    if (a.size() != count_) throw std::logic_error("array of another size than its buffer");
    read(a.mutable_data());
    return a;
  }

 private:
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }
  T* data_ = nullptr;
  int64_t count_ = 0;
};

Format named_format(const std::string& name) {
  for (int i = 0; i < kFormatCount; ++i) {
    if (name == format_info(static_cast<Format>(i)).name) return static_cast<Format>(i);
  }
  throw std::invalid_argument("format '" + name + "' is unknown");
}

// A matrix on the device, packed in pieces of `piece` rows.
struct DeviceMatrix {
  DeviceMatrix(const std::string& format_name, const Array<uint8_t>& rows, int64_t piece = kPackRows) {
    const Format format = named_format(format_name);
    const FormatInfo& info = format_info(format);
    if (rows.ndim() != 2 || rows.shape(1) == 0 || rows.shape(1) % info.block_bytes)
      throw std::invalid_argument("rows: expected (n, bytes) with bytes a multiple of " +
                                  std::to_string(info.block_bytes));
    const int64_t n = rows.shape(0), k = rows.shape(1) / info.block_bytes * info.block_values;
    std::vector<uint8_t> packed(packed_bytes(format, n, k), 0xff);
    for (int64_t begin = 0; begin < n; begin += piece) {
      const int64_t end = std::min(n, begin + piece);
      pack_rows(format, rows.data() + begin * rows.shape(1), n, k, begin, end,
                packed.data() + packed_offset(format, n, k, begin));
    }
    data = Buffer<uint8_t>(packed.data(), static_cast<int64_t>(packed.size()));
    matrix = {format, n, k, data.get()};
  }
  Matrix matrix;
  Buffer<uint8_t> data;
};

// The quantized form of rows, in order of k: q (T, k), d (T, k / 32), d * sum (T, k / 32), of halves (T, k / 16).
py::tuple read_blocks(const Buffer<uint8_t>& blocks, int64_t tokens, int64_t k) {
  std::vector<uint8_t> bytes(act_bytes(k, tokens));
  blocks.read(bytes.data());
  Array<int8_t> q({tokens, k});
  Array<float> d({tokens, k / 32}), products({tokens, k / 32}), halves({tokens, k / 16});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t b = 0; b < k / 32; ++b) {
      const uint8_t* super = bytes.data() + (t * supers_of(k) + b / 8) * kActSuperBytes;
      const auto in = static_cast<size_t>(b % 8);
      for (size_t i = 0; i < 32; ++i)
        *q.mutable_data(t, b * 32 + static_cast<int64_t>(i)) =
            static_cast<int8_t>(super[in / 2 * 64 + i % 16 / 4 * 16 + in % 2 * 8 + i / 16 * 4 + i % 4]);
      std::memcpy(d.mutable_data(t, b), super + kActScales + 4 * in, 4);
      std::memcpy(products.mutable_data(t, b), super + kActProducts + 4 * in, 4);
      std::memcpy(halves.mutable_data(t, 2 * b), super + kActHalfProducts + 8 * in, 8);
    }
  }
  return py::make_tuple(q, d, products, halves);
}

// Where a row kernel puts its result: f32, and if k allows the quantized form.
struct Rows {
  Rows(int64_t tokens, int64_t k, bool quantized)
      : tokens(tokens),
        k(k),
        y(tokens * k),
        blocks(quantized ? static_cast<int64_t>(act_bytes(k, tokens)) : 1),
        quantized(quantized) {}
  uint8_t* at() const { return quantized ? blocks.get() : nullptr; }
  py::object result() const {
    check(cudaDeviceSynchronize());
    const Array<float> rows = y.array({tokens, k});
    if (!quantized) return rows;
    return py::make_tuple(rows, read_blocks(blocks, tokens, k));
  }
  int64_t tokens, k;
  Buffer<float> y;
  Buffer<uint8_t> blocks;
  bool quantized;
};

py::tuple kernel_quantize(const Array<float>& x) {
  const int64_t tokens = x.shape(0), k = x.shape(1);
  const Buffer<float> from(x);
  const Buffer<uint8_t> blocks(static_cast<int64_t>(act_bytes(k, tokens)));
  quantize(from.get(), tokens, k, blocks.get(), nullptr);
  check(cudaDeviceSynchronize());
  return read_blocks(blocks, tokens, k);
}

using PartIn = std::tuple<std::string, Array<uint8_t>, Maybe<float>>;

py::object kernel_linear(const std::vector<PartIn>& parts, const Array<float>& x, const Maybe<float>& add, float alpha,
                         int64_t piece, bool gated) {
  std::vector<DeviceMatrix> matrices;
  std::vector<Buffer<float>> biases;
  const int64_t tokens = x.shape(0), k = x.shape(1);
  int64_t width = 0;
  Linear op{};
  if (parts.size() > kMaxParts) throw std::invalid_argument("too many matrices");
  for (const auto& [format, rows, bias] : parts) {
    matrices.emplace_back(format, rows, piece);
    biases.emplace_back(bias);
    if (matrices.back().matrix.k != k) throw std::invalid_argument("x has another width");
    op.parts[op.count++] = {matrices.back().matrix, biases.back().get()};
    width += matrices.back().matrix.n;
  }
  const Buffer<float> from(x), added(add), y(tokens * width);
  const Buffer<uint8_t> blocks(static_cast<int64_t>(act_bytes(k, tokens)));
  if (k % 32 == 0) quantize(from.get(), tokens, k, blocks.get(), nullptr);
  op.tokens = tokens;
  op.x = from.get();
  op.blocks = blocks.get();
  op.add = added.get();
  op.alpha = alpha;
  op.y = y.get();
  const Rows out(tokens, width / 2, true);
  if (gated) {
    op.gated = out.y.get();
    op.gated_blocks = out.at();
  }
  linear(op, nullptr);
  if (gated) return out.result();
  check(cudaDeviceSynchronize());
  return y.array({tokens, width});
}

py::object kernel_embed(const std::string& format, const Array<uint8_t>& table, const Array<int32_t>& tokens,
                        const std::vector<std::pair<std::string, Array<uint8_t>>>& axes,
                        const Array<int32_t>& positions, bool quantized) {
  const DeviceMatrix m(format, table);
  std::vector<DeviceMatrix> added;
  for (const auto& [name, rows] : axes) added.emplace_back(name, rows);
  const Buffer<int32_t> ids(tokens), places(positions);
  StepState step{};
  step.tokens = ids.get();
  for (int a = 0; a < positions.shape(0); ++a) step.positions[a] = places.get() + a * tokens.size();
  const Rows out(tokens.size(), m.matrix.k, quantized);
  embed(m.matrix, added.empty() ? nullptr : &added[0].matrix, added.size() < 2 ? nullptr : &added[1].matrix, step,
        tokens.size(), out.y.get(), out.at(), nullptr);
  return out.result();
}

py::object kernel_rms_norm(const Array<float>& x, const Array<float>& w, const Maybe<float>& add, float eps,
                           bool quantized) {
  const Buffer<float> from(x), weight(w), added(add);
  const Rows out(x.shape(0), x.shape(1), quantized);
  rms_norm(from.get(), {weight.get(), added.get(), eps, out.y.get(), out.at()}, nullptr, out.tokens, out.k, nullptr);
  return out.result();
}

py::object kernel_layer_norm(const Array<float>& x, const Array<float>& w, const Array<float>& b, float eps,
                             bool quantized) {
  const Buffer<float> from(x), weight(w), bias(b);
  const Rows out(x.shape(0), x.shape(1), quantized);
  layer_norm(from.get(), weight.get(), bias.get(), out.y.get(), out.tokens, out.k, eps, out.at(), nullptr);
  return out.result();
}

py::object kernel_swiglu(const Array<float>& x, bool quantized) {
  const Buffer<float> from(x);
  const Rows out(x.shape(0), x.shape(1) / 2, quantized);
  swiglu(from.get(), out.y.get(), out.tokens, out.k, out.at(), nullptr);
  return out.result();
}

py::object kernel_gelu(const Array<float>& x, bool quantized, bool exact) {
  const Buffer<float> from(x);
  const Rows out(x.shape(0), x.shape(1), quantized);
  (exact ? gelu_erf : gelu)(from.get(), out.y.get(), out.tokens, out.k, out.at(), nullptr);
  return out.result();
}

py::object kernel_select(const Array<float>& x, const Array<int32_t>& rows, bool quantized) {
  const Buffer<float> from(x);
  const Buffer<int32_t> ids(rows);
  const Rows out(rows.size(), x.shape(1), quantized);
  select(from.get(), ids.get(), out.tokens, out.k, out.y.get(), out.at(), nullptr);
  return out.result();
}

// A token for each sampler, from rows[i] of the logits: (token or -1).
Array<int32_t> kernel_draw(const Array<float>& logits, const std::vector<std::shared_ptr<Sampler>>& samplers,
                           const std::vector<int32_t>& rows) {
  const auto count = static_cast<int64_t>(samplers.size());
  Drawing op{};
  op.vocab = logits.shape(1);
  op.count = count;
  op.greedy = true;
  std::vector<DrawRequest> requests;
  for (const auto& sampler : samplers) {
    requests.push_back(sampler->request(op.vocab));
    op.greedy &= requests.back().draw.sharpness == 0;
    op.adjustment_stride = std::max(op.adjustment_stride, static_cast<int64_t>(requests.back().adjustments.size()));
  }
  std::vector<Drawing::Row> drawn;
  std::vector<Adjustment> adjustments(static_cast<size_t>(count * op.adjustment_stride) + 1);
  for (size_t i = 0; i < requests.size(); ++i) {
    const std::vector<Adjustment>& list = requests[i].adjustments;
    drawn.push_back({requests[i].draw, rows[i], static_cast<int32_t>(list.size())});
    std::copy(list.begin(), list.end(), adjustments.begin() + static_cast<std::ptrdiff_t>(i) * op.adjustment_stride);
  }
  const Buffer<float> from(logits);
  const Buffer<Drawing::Row> draws(drawn.data(), count);
  const Buffer<Adjustment> changes(adjustments.data(), static_cast<int64_t>(adjustments.size()));
  const Buffer<uint8_t> scratch(static_cast<int64_t>(draw_bytes(op.vocab, count)));
  const Buffer<int32_t> tokens(count);
  op.logits = from.get();
  op.rows = draws.get();
  op.adjustments = changes.get();
  op.scratch = scratch.get();
  op.tokens = tokens.get();
  draw(op, nullptr);
  check(cudaDeviceSynchronize());
  return tokens.array({count});
}

Array<int32_t> kernel_check_finite(const Array<float>& x, const Array<int32_t>& row_token, int64_t tokens) {
  const Buffer<float> from(x);
  const Buffer<int32_t> map(row_token), bad(tokens);
  check(cudaMemset(bad.get(), 0, static_cast<size_t>(tokens) * sizeof(int32_t)));
  check_finite(from.get(), x.shape(0), x.shape(1), map.get(), bad.get(), nullptr);
  check(cudaDeviceSynchronize());
  return bad.array({tokens});
}

// The KV pages of one layer.
class KvPages {
 public:
  KvPages(int heads, int kv_heads, int head_dim, const std::string& kv_type, int64_t pages)
      : heads_(heads),
        type_(kv_type_named(kv_type.c_str())),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        memory_(pages * static_cast<int64_t>(kv_page_bytes(type_, kv_heads, head_dim))) {
    check(cudaMemset(memory_.get(), 0, static_cast<size_t>(pages) * page_bytes()));
  }

  size_t page_bytes() const { return kv_page_bytes(type_, kv_heads_, head_dim_); }

  // rope: first, second, axis (pairs,) int32, freq (pairs,) f64, magnitude. step: positions (axes, T), entry, visible,
  // run (T,), pages (runs, n), all int32. Returns qkv as turned and bad (T,).
  using RopeIn = std::tuple<Array<int32_t>, Array<int32_t>, Array<int32_t>, Array<double>, double>;
  struct StepIn {
    StepIn(const Array<int32_t>& positions, const Array<int32_t>& entry, const Array<int32_t>& visible,
           const Array<int32_t>& run, const Array<int32_t>& pages)
        : positions(positions), entry(entry), visible(visible), run(run), pages(pages) {
      state = {nullptr, {}, this->entry.get(), this->visible.get(), this->run.get(), this->pages.get(), pages.shape(1)};
      for (int a = 0; a < positions.shape(0); ++a) state.positions[a] = this->positions.get() + a * entry.size();
    }
    Buffer<int32_t> positions, entry, visible, run, pages;
    StepState state;
  };

  py::tuple append(const Array<float>& qkv, const Array<int32_t>& positions, const Array<int32_t>& entry,
                   const Array<int32_t>& visible, const Array<int32_t>& run, const Array<int32_t>& pages,
                   const std::optional<RopeIn>& rope, const Maybe<float>& q_norm, const Maybe<float>& k_norm,
                   float eps) {
    const StepIn step(positions, entry, visible, run, pages);
    const int64_t tokens = qkv.shape(0);
    const Buffer<float> values(qkv), q_weight(q_norm), k_weight(k_norm);
    const Buffer<int32_t> bad(tokens);
    check(cudaMemset(bad.get(), 0, static_cast<size_t>(tokens) * sizeof(int32_t)));
    AppendKv op{};
    op.qkv = values.get();
    op.tokens = tokens;
    op.heads = heads_;
    op.q_norm = q_weight.get();
    op.k_norm = k_weight.get();
    op.eps = eps;
    op.cache = cache();
    op.step = step.state;
    op.bad = bad.get();
    if (!rope) {
      append_kv(op, nullptr);
      check(cudaDeviceSynchronize());
    } else {
      const auto& [first, second, axis, freq, magnitude] = *rope;
      const Buffer<int32_t> a(first), b(second), axes(axis);
      const Buffer<double> freqs(freq);
      const Rope table{a.get(), b.get(), axes.get(), freqs.get(), magnitude, first.size()};
      const Buffer<float> turns(2 * tokens * first.size());
      make_turns(table, step.state, tokens, turns.get(), nullptr);
      op.rope = &table;
      op.turns = turns.get();
      append_kv(op, nullptr);
      check(cudaDeviceSynchronize());
    }
    return py::make_tuple(values.array({tokens, qkv.shape(1)}), bad.array({tokens}));
  }

  bool store(const Array<float>& k, const Array<float>& v, const Array<int32_t>& pages) {
    const Buffer<float> keys(k), values(v);
    const Buffer<int32_t> table(pages), bad(1);
    check(cudaMemset(bad.get(), 0, sizeof(int32_t)));
    store_prefix(keys.get(), values.get(), k.shape(0), cache(), table.get(), bad.get(), nullptr);
    check(cudaDeviceSynchronize());
    int32_t flag;
    bad.read(&flag);
    return flag == 0;
  }

  // tiles (n, 2).
  py::object attend(const Array<float>& qkv, const Array<int32_t>& positions, const Array<int32_t>& entry,
                    const Array<int32_t>& visible, const Array<int32_t>& run, const Array<int32_t>& pages,
                    const Array<int32_t>& tiles, int64_t max_context, float scale, bool quantized) {
    const StepIn step(positions, entry, visible, run, pages);
    const int64_t tokens = qkv.shape(0), width = int64_t{heads_} * head_dim_;
    const Buffer<float> values(qkv);
    const Buffer<int32_t> cut(tiles);
    const size_t bytes = attention_partial_bytes(heads_, kv_heads_, head_dim_, tokens, tiles.shape(0), max_context);
    const Buffer<float> partials(static_cast<int64_t>(bytes / sizeof(float)) + 1);
    const Rows out(tokens, width, quantized);
    Attention op{};
    op.qkv = values.get();
    op.tokens = tokens;
    op.heads = heads_;
    op.scale = scale;
    op.cache = cache();
    op.step = step.state;
    op.tiles = reinterpret_cast<const Tile*>(cut.get());
    op.tile_count = tiles.shape(0);
    op.max_context = max_context;
    op.partials = partials.get();
    op.y = out.y.get();
    op.blocks = out.at();
    attention(op, nullptr);
    return out.result();
  }

 private:
  KvCache cache() const { return {type_, kv_heads_, head_dim_, memory_.get()}; }
  int heads_;
  KvType type_;
  int kv_heads_, head_dim_;
  Buffer<uint8_t> memory_;
};

py::arg array(const char* name) { return py::arg(name).noconvert(); }

}  // namespace

void bind_kernels(py::module_& m) {
  m.def("packed_bytes", [](const std::string& f, int64_t n, int64_t k) { return packed_bytes(named_format(f), n, k); });
  m.def("kernel_quantize", kernel_quantize, array("x"));
  m.def("kernel_linear", kernel_linear, py::arg("parts"), array("x"), py::arg("add") = py::none(),
        py::arg("alpha") = 1.0f, py::arg("piece") = kPackRows, py::arg("gated") = false);
  m.def("kernel_embed", kernel_embed, py::arg("format"), array("table"), array("tokens"), py::arg("axes"),
        array("positions"), py::arg("quantized") = false);
  m.def("kernel_rms_norm", kernel_rms_norm, array("x"), array("w"), py::arg("add"), py::arg("eps"),
        py::arg("quantized") = false);
  m.def("kernel_layer_norm", kernel_layer_norm, array("x"), array("w"), array("b"), py::arg("eps"),
        py::arg("quantized") = false);
  m.def("kernel_swiglu", kernel_swiglu, array("x"), py::arg("quantized") = false);
  m.def("kernel_gelu", kernel_gelu, array("x"), py::arg("quantized") = false, py::arg("exact") = false);
  m.def("kernel_select", kernel_select, array("x"), array("rows"), py::arg("quantized") = false);
  m.def("kernel_draw", kernel_draw, array("logits"), py::arg("samplers"), py::arg("rows"));
  m.def("kernel_check_finite", kernel_check_finite, array("x"), array("row_token"), py::arg("tokens"));
  m.def("attention_tile_tokens", attention_tile_tokens);
  py::class_<KvPages>(m, "KvPages")
      .def(py::init<int, int, int, const std::string&, int64_t>(), py::arg("heads"), py::arg("kv_heads"),
           py::arg("head_dim"), py::arg("kv_type"), py::arg("pages"))
      .def_property_readonly("page_bytes", &KvPages::page_bytes)
      .def("append", &KvPages::append, array("qkv"), array("positions"), array("entry"), array("visible"), array("run"),
           array("pages"), py::arg("rope") = py::none(), py::arg("q_norm") = py::none(), py::arg("k_norm") = py::none(),
           py::arg("eps") = 0.0f)
      .def("store", &KvPages::store, array("k"), array("v"), array("pages"))
      .def("attend", &KvPages::attend, array("qkv"), array("positions"), array("entry"), array("visible"), array("run"),
           array("pages"), array("tiles"), py::arg("max_context"), py::arg("scale"), py::arg("quantized") = false);
}

}  // namespace glmlite::cuda
