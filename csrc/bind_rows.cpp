// Entry points of the row, RoPE and attention kernels, for tests and benchmarks.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "cpu/kernels.h"

namespace py = pybind11;

namespace glmlite {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Rows = Array<float>;

// 64-byte aligned, as kernels want their scratch.
struct alignas(64) Line {
  char bytes[64];
};

template <class T>
void expect_shape(const char* name, const Array<T>& array, std::vector<py::ssize_t> shape) {
  std::vector<py::ssize_t> is(array.shape(), array.shape() + array.ndim());
  if (is == shape) return;
  auto text = [](const std::vector<py::ssize_t>& s) {
    std::string t;
    for (auto n : s) t += (t.empty() ? "" : ", ") + std::to_string(n);
    return "(" + t + ")";
  };
  throw std::invalid_argument(std::string(name) + ": shape is " + text(is) + ", expected " + text(shape));
}

template <class T>
void expect_dims(const char* name, const Array<T>& array, py::ssize_t ndim) {
  if (array.ndim() != ndim)
    throw std::invalid_argument(std::string(name) + ": has " + std::to_string(array.ndim()) + " dimensions, expected " +
                                std::to_string(ndim));
}

// A new (rows, n) array, each row filled by op(row) with the GIL released.
template <class Op>
Rows fill_rows(py::ssize_t rows, py::ssize_t n, Op op) {
  Rows y({rows, n});
  float* out = y.mutable_data();
  py::gil_scoped_release release;
  for (py::ssize_t r = 0; r < rows; ++r) op(r, out + r * n);
  return y;
}

Rows kernel_rms_norm(const std::string& isa, Rows x, Rows w, std::optional<Rows> add, float eps) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  py::ssize_t n = x.shape(1);
  expect_shape("w", w, {n});
  if (add) expect_shape("add", *add, {x.shape(0), n});
  const float *in = x.data(), *weights = w.data(), *adds = add ? add->data() : nullptr;
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) {
    kernels.rms_norm(in + r * n, weights, adds ? adds + r * n : nullptr, y, n, eps);
  });
}

Rows kernel_layer_norm(const std::string& isa, Rows x, Rows w, Rows b, float eps) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  py::ssize_t n = x.shape(1);
  expect_shape("w", w, {n});
  expect_shape("b", b, {n});
  const float *in = x.data(), *weights = w.data(), *bias = b.data();
  return fill_rows(x.shape(0), n,
                   [&](py::ssize_t r, float* y) { kernels.layer_norm(in + r * n, weights, bias, y, n, eps); });
}

Rows kernel_swiglu(const std::string& isa, Rows x) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  if (x.shape(1) % 2) throw std::invalid_argument("x: has an odd number of columns, expected gate and up side by side");
  py::ssize_t n = x.shape(1) / 2;
  const float* in = x.data();
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) { kernels.swiglu(in + r * 2 * n, y, n); });
}

Rows kernel_gelu(const std::string& isa, Rows x) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  py::ssize_t n = x.shape(1);
  const float* in = x.data();
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) { kernels.gelu(in + r * n, y, n); });
}

Rows kernel_rope(const std::string& isa, Rows x, Array<int32_t> first, Array<int32_t> second, Rows cos, Rows sin) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  expect_dims("first", first, 1);
  py::ssize_t n = x.shape(1), pairs = first.shape(0);
  expect_shape("second", second, {pairs});
  expect_shape("cos", cos, {pairs});
  expect_shape("sin", sin, {pairs});
  for (const auto* side : {&first, &second})
    for (py::ssize_t i = 0; i < pairs; ++i)
      if (side->at(i) < 0 || side->at(i) >= n)
        throw std::invalid_argument("rope: a pair names column " + std::to_string(side->at(i)) + " of " +
                                    std::to_string(n));
  RopePairs turn{first.data(), second.data(), pairs};
  const float *in = x.data(), *cosines = cos.data(), *sines = sin.data();
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) {
    std::copy(in + r * n, in + (r + 1) * n, y);
    kernels.rope(y, turn, cosines, sines);
  });
}

// What one KV head keeps of a context. What nobody has written is large but finite, so that a kernel shows it reads it.
struct HeadPages {
  std::vector<Line> k, v;
  std::vector<const uint8_t*> k_pages, v_pages;

  HeadPages(const CpuKernels& kernels, KvType type, const float* k_rows, const float* v_rows, int64_t ctx,
            int64_t head_dim) {
    const int64_t pages = (ctx + kPageTokens - 1) / kPageTokens;
    const size_t lines = kv_bytes(type, head_dim) / sizeof(Line);
    k.resize(static_cast<size_t>(pages) * lines);
    std::memset(k.data(), 0x7b, k.size() * sizeof(Line));  // 61216 as f16
    v = k;
    for (int64_t p = 0; p < pages; ++p) {
      auto* k_page = reinterpret_cast<uint8_t*>(k.data() + p * lines);
      auto* v_page = reinterpret_cast<uint8_t*>(v.data() + p * lines);
      for (int64_t i = p * kPageTokens; i < ctx && i < (p + 1) * kPageTokens; ++i) {
        if (!kernels.store_kv[static_cast<int>(type)](k_rows + i * head_dim, v_rows + i * head_dim, head_dim, k_page,
                                                      v_page, i % kPageTokens))
          throw std::invalid_argument("attend: position " + std::to_string(i) + " of k or v is not finite");
      }
      k_pages.push_back(k_page);
      v_pages.push_back(v_page);
    }
    k_pages.resize(k_pages.size() + kChunkTokens / kPageTokens, k_pages.back());  // what a last chunk may fetch ahead
  }
};

// The rows as the executor gives them to the kernels of a type of page.
std::vector<float> turned(const CpuKernels& kernels, KvType type, const Rows& rows) {
  std::vector<float> x(rows.data(), rows.data() + rows.size());
  if (type == KvType::kQ8) {
    for (py::ssize_t i = 0; i < rows.shape(0); ++i) kernels.rotate(x.data() + i * rows.shape(1), rows.shape(1));
  }
  return x;
}

Rows kernel_attend(const std::string& isa, Rows q, Rows k, Rows v, Array<int64_t> visible, float scale,
                   const std::string& kv_type) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  const KvType type = kv_type_named(kv_type.c_str());
  expect_dims("q", q, 2);
  expect_dims("k", k, 2);
  const py::ssize_t queries = q.shape(0), head_dim = q.shape(1), ctx = k.shape(0);
  expect_shape("k", k, {ctx, head_dim});
  expect_shape("v", v, {ctx, head_dim});
  expect_shape("visible", visible, {queries});
  for (py::ssize_t i = 0; i < queries; ++i)
    if (visible.at(i) < 1 || visible.at(i) > ctx)
      throw std::invalid_argument("visible: " + std::to_string(visible.at(i)) + ", expected 1 to " +
                                  std::to_string(ctx));
  Rows y({queries, head_dim});
  float* out = y.mutable_data();
  const std::vector<float> q_rows = turned(kernels, type, q), k_rows = turned(kernels, type, k);
  const float* v_rows = v.data();
  const int64_t* sees = visible.data();

  py::gil_scoped_release release;
  HeadPages pages(kernels, type, k_rows.data(), v_rows, ctx, head_dim);
  const size_t m = static_cast<size_t>(queries), size = m * static_cast<size_t>(head_dim);
  std::vector<const float*> heads;
  for (py::ssize_t i = 0; i < queries; ++i) heads.push_back(q_rows.data() + i * head_dim);
  std::vector<float> max(m, -INFINITY), sum(m, 0.0f), acc(size, 0.0f), chunk_max(m), chunk_sum(m), chunk_acc(size);
  std::vector<Line> scratch(attend_scratch_bytes(queries, head_dim) / sizeof(Line) + 1);
  for (int64_t begin = 0; begin < ctx; begin += kChunkTokens) {
    const int64_t end = begin + kChunkTokens < ctx ? begin + kChunkTokens : ctx, page = begin / kPageTokens;
    AttendArgs args;
    args.q = heads.data();
    args.queries = queries;
    args.head_dim = head_dim;
    args.scale = scale;
    args.k = pages.k_pages.data() + page;
    args.v = pages.v_pages.data() + page;
    args.ahead = args.k + (end - begin + kPageTokens - 1) / kPageTokens;
    args.begin = begin;
    args.end = end;
    args.visible = sees;
    args.max = chunk_max.data();
    args.sum = chunk_sum.data();
    args.acc = chunk_acc.data();
    args.scratch = scratch.data();
    kernels.attend[static_cast<int>(type)](args);
    for (py::ssize_t i = 0; i < queries; ++i)
      kernels.attend_merge(&max[i], &sum[i], acc.data() + i * head_dim, chunk_max[i], chunk_sum[i],
                           chunk_acc.data() + i * head_dim, head_dim);
  }
  for (py::ssize_t i = 0; i < queries; ++i)
    kernels.attend_finish(acc.data() + i * head_dim, sum[i], out + i * head_dim, head_dim);
  return y;
}

}  // namespace

void bind_rows(py::module_& m) {
  auto array = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("kernel_rms_norm", kernel_rms_norm, py::arg("isa"), array("x"), array("w"), array("add").none(true),
        py::arg("eps"));
  m.def("kernel_layer_norm", kernel_layer_norm, py::arg("isa"), array("x"), array("w"), array("b"), py::arg("eps"));
  m.def("kernel_swiglu", kernel_swiglu, py::arg("isa"), array("x"));
  m.def("kernel_gelu", kernel_gelu, py::arg("isa"), array("x"));
  m.def("kernel_rope", kernel_rope, py::arg("isa"), array("x"), array("first"), array("second"), array("cos"),
        array("sin"));
  m.def("kernel_attend", kernel_attend, py::arg("isa"), array("q"), array("k"), array("v"), array("visible"),
        py::arg("scale"), py::arg("kv_type") = "f16");
}

}  // namespace glmlite
