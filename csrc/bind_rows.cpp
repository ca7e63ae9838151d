// Entry points of the row, RoPE and attention kernels, for tests and benchmarks.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "bind_isa.h"
#include "cpu/kernels.h"
#include "cpu/team.h"
#include "memory.h"

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

// The rows as the executor gives them to the kernels of a type of page.
std::vector<float> turned(const CpuKernels& kernels, KvType type, const Rows& rows) {
  std::vector<float> x(rows.data(), rows.data() + rows.size());
  const int64_t head_dim = rows.shape(rows.ndim() - 1);
  if (type == KvType::kQ8) {
    for (float* row = x.data(); row < x.data() + x.size(); row += head_dim) kernels.rotate(row, head_dim);
  }
  return x;
}

// What some KV heads keep of a context, in pages, and a team of threads: stored once, attended to many times.
class KvPages {
 public:
  KvPages(const std::string& isa, const Rows& k, const Rows& v, const std::string& kv_type, int threads)
      : kernels_(kernels_named(isa)), type_(kv_type_named(kv_type.c_str())), team_(checked(threads)) {
    expect_dims("k", k, 3);
    heads_ = k.shape(0);
    ctx_ = k.shape(1);
    head_dim_ = k.shape(2);
    expect_shape("v", v, {heads_, ctx_, head_dim_});
    const std::vector<float> k_rows = turned(kernels_, type_, k);
    const float* v_rows = v.data();

    py::gil_scoped_release release;
    pages_ = (ctx_ + kPageTokens - 1) / kPageTokens;
    bytes_ = (glmlite::kv_bytes(type_, head_dim_) + 63) / 64 * 64;
    memory_ = Memory(static_cast<size_t>(2 * heads_ * pages_) * bytes_, "KV pages");
    // What nobody writes is large but finite, 61216 as f16, so that a kernel shows it if it reads it.
    std::memset(memory_.data(), 0x7b, memory_.size());
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t i = 0; i < ctx_; ++i) {
        const int64_t row = (h * ctx_ + i) * head_dim_;
        if (!kernels_.store_kv[static_cast<int>(type_)](k_rows.data() + row, v_rows + row, head_dim_,
                                                        k_page(h, i / kPageTokens), v_page(h, i / kPageTokens),
                                                        i % kPageTokens))
          throw std::invalid_argument("attend: position " + std::to_string(i) + " of k or v is not finite");
      }
    }
  }

  size_t nbytes() const { return memory_.size(); }

  // As the engine does it: threads take chunks of a context, and the chunks of each head are then merged in order.
  void attend(const Rows& q, const Array<int64_t>& visible, float scale, Rows& y) {
    expect_dims("q", q, 3);
    const int64_t queries = q.shape(1), chunks = (ctx_ + kChunkTokens - 1) / kChunkTokens;
    expect_shape("q", q, {heads_, queries, head_dim_});
    expect_shape("y", y, {heads_, queries, head_dim_});
    expect_shape("visible", visible, {queries});
    for (int64_t i = 0; i < queries; ++i)
      if (visible.at(i) < 1 || visible.at(i) > ctx_)
        throw std::invalid_argument("visible: " + std::to_string(visible.at(i)) + ", expected 1 to " +
                                    std::to_string(ctx_));
    const std::vector<float> q_rows = turned(kernels_, type_, q);
    const int64_t* sees = visible.data();
    float* out = y.mutable_data();

    py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t part = static_cast<size_t>(queries * (head_dim_ + 2)), of_head = part * static_cast<size_t>(chunks);
    parts_.resize(of_head * static_cast<size_t>(heads_));
    const size_t scratch_lines = attend_scratch_bytes(queries, head_dim_) / sizeof(Line) + 1;
    scratch_.resize(scratch_lines * static_cast<size_t>(team_.size()));
    team_.run([&](int thread) {
      int64_t task;
      // The next task is taken before this one is done, to know which keys to fetch meanwhile.
      for (bool more = team_.take(heads_ * chunks, &task); more;) {
        int64_t next;
        more = team_.take(heads_ * chunks, &next);
        const int64_t head = task % heads_, chunk = task / heads_;
        const Pages pages = find(head, chunk), ahead = more ? find(next % heads_, next / heads_) : pages;
        float* to = parts_.data() + of_head * static_cast<size_t>(head) + part * static_cast<size_t>(chunk);
        const float* q_pointers[kMaxQueries];
        for (int64_t begin = 0; begin < queries; begin += kMaxQueries) {
          const int64_t m = std::min(kMaxQueries, queries - begin);
          for (int64_t i = 0; i < m; ++i) q_pointers[i] = q_rows.data() + (head * queries + begin + i) * head_dim_;
          AttendArgs args;
          args.q = q_pointers;
          args.queries = m;
          args.head_dim = head_dim_;
          args.scale = scale;
          args.k = pages.k;
          args.v = pages.v;
          args.ahead = ahead.k;
          args.begin = chunk * kChunkTokens;
          args.end = std::min(args.begin + kChunkTokens, ctx_);
          args.visible = sees + begin;
          args.max = to + begin;
          args.sum = to + queries + begin;
          args.acc = to + 2 * queries + begin * head_dim_;
          args.scratch = scratch_.data() + scratch_lines * static_cast<size_t>(thread);
          kernels_.attend[static_cast<int>(type_)](args);
        }
        task = next;
      }
      team_.barrier();
      while (team_.take(heads_, &task)) {
        float* state = parts_.data() + of_head * static_cast<size_t>(task);
        for (int64_t i = 0; i < queries; ++i) {
          float* acc = state + 2 * queries + i * head_dim_;
          for (int64_t c = 1; c < chunks; ++c) {
            const float* chunk = state + part * static_cast<size_t>(c);
            kernels_.attend_merge(state + i, state + queries + i, acc, chunk[i], chunk[queries + i],
                                  chunk + 2 * queries + i * head_dim_, head_dim_);
          }
          kernels_.attend_finish(acc, state[queries + i], out + (task * queries + i) * head_dim_, head_dim_);
        }
      }
    });
  }

 private:
  static constexpr int64_t kMaxQueries = 64;  // of one call of a kernel, as in the engine
  static constexpr int64_t kChunkPages = kChunkTokens / kPageTokens;
  struct Pages {
    const uint8_t *k[kChunkPages], *v[kChunkPages];
  };

  static int checked(int threads) {
    if (threads >= 1 && threads <= 1024) return threads;
    throw std::invalid_argument("threads: " + std::to_string(threads) + ", expected 1 to 1024");
  }
  uint8_t* k_page(int64_t head, int64_t page) const {
    return memory_.data() + static_cast<size_t>(2 * (head * pages_ + page)) * bytes_;
  }
  uint8_t* v_page(int64_t head, int64_t page) const { return k_page(head, page) + bytes_; }
  Pages find(int64_t head, int64_t chunk) const {  // beyond the context, the last page again
    Pages pages;
    for (int64_t i = 0; i < kChunkPages; ++i) {
      const int64_t page = std::min(chunk * kChunkPages + i, pages_ - 1);
      pages.k[i] = k_page(head, page);
      pages.v[i] = v_page(head, page);
    }
    return pages;
  }

  const CpuKernels& kernels_;
  const KvType type_;
  Team team_;
  int64_t heads_ = 0, ctx_ = 0, head_dim_ = 0, pages_ = 0;
  size_t bytes_ = 0;  // of the keys, or values, of a page
  Memory memory_;
  std::mutex mutex_;          // one call at a time
  std::vector<float> parts_;  // (heads, chunks) of max (M), sum (M), acc (M, head_dim)
  std::vector<Line> scratch_;
};

Rows kernel_attend(const std::string& isa, Rows q, Rows k, Rows v, Array<int64_t> visible, float scale,
                   const std::string& kv_type) {
  expect_dims("q", q, 2);
  expect_dims("k", k, 2);
  expect_dims("v", v, 2);
  const auto one_head = [](Rows& x) { return Rows(x.reshape({py::ssize_t{1}, x.shape(0), x.shape(1)})); };
  Rows y({py::ssize_t{1}, q.shape(0), q.shape(1)});
  KvPages(isa, one_head(k), one_head(v), kv_type, 1).attend(one_head(q), visible, scale, y);
  return Rows(y.reshape({q.shape(0), q.shape(1)}));
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
  py::class_<KvPages>(m, "KvPages")
      .def(py::init<const std::string&, const Rows&, const Rows&, const std::string&, int>(), py::arg("isa"),
           array("k"), array("v"), py::arg("kv_type") = "f16", py::arg("threads") = 1)
      .def_property_readonly("nbytes", &KvPages::nbytes)
      .def("attend", &KvPages::attend, array("q"), array("visible"), py::arg("scale"), array("y"));
  m.def("kernel_attend", kernel_attend, py::arg("isa"), array("q"), array("k"), array("v"), array("visible"),
        py::arg("scale"), py::arg("kv_type") = "f16");
}

}  // namespace glmlite
